"""Errors, interruptions and calls at the wrong moment: no answer is lost, and none pays for another's."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from vlm.common.errors import UserError
from vlm.inference.batching import alone as lone_rows
from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.engine import Engine

from .batching_asking import GREEDY, alone, check_ids, in_threads, in_time, submitted, told
from .batching_subjects import LONG, again, ask, distinct, questions


@pytest.fixture(scope="module")
def wanted(model: Engine) -> list[list[int]]:
    """Greedy answers to the first four questions."""
    rows = [alone(model, c) for c in questions()[:4]]
    assert distinct(rows)
    return rows


def check_alive(engine: Engine, wanted: list[list[int]]) -> None:
    """Raises AssertionError: the engine does not answer as before."""
    asked = questions()[: len(wanted)]
    answers = in_time(lambda: submitted(engine, asked, [GREEDY] * len(asked)))
    check_ids(engine, asked, [a.ids for a in answers], wanted)
    stats = engine.stats()
    assert stats.asked == sum(vars(stats)[n] for n in ("stopped", "at_length", "cancelled", "timed_out", "failed"))
    assert stats.running == stats.waiting == 0


class Fails:
    """Raises an error the n-th time that it is called, then does what it is put before."""

    def __init__(self, error: BaseException, number: int, function: Any) -> None:
        self.error, self.number, self.function = error, number, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.number -= 1
        if self.number == 0:
            raise self.error
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_answer_that_cannot_begin_fails(model: Engine, wanted, monkeypatch, use_cache: bool) -> None:
    """It is neither waiting nor among the rows then."""
    engine = again(model)
    shared = engine.scheduler.shared
    owner, name = (shared, "begin") if use_cache else (lone_rows, "IncrementalDecoder")
    monkeypatch.setattr(owner, name, Fails(MemoryError("none left"), 1, getattr(owner, name)))
    answer = engine.submit(questions()[0], GREEDY.replace(use_cache=use_cache))
    with pytest.raises(MemoryError):
        in_time(answer.result)
    check_alive(engine, wanted)


@pytest.mark.parametrize("place", ["begin", "read", "write", "_swap", "remove"])
@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupted_step_ends_every_answer(model: Engine, wanted, monkeypatch, place: str, number: int) -> None:
    """The thread that took it is told, the others get an error, and nobody waits for ever."""
    engine = again(model, prefill=64)
    shared = engine.scheduler.shared
    answers = [engine.submit(c, GREEDY) for c in questions()[:4]]
    monkeypatch.setattr(shared, place, Fails(KeyboardInterrupt(), number, getattr(shared, place)))
    with pytest.raises(KeyboardInterrupt):
        in_time(lambda: [a.result() for a in answers])
    for answer, ids in zip(answers, wanted, strict=True):
        try:
            in_time(answer.result)
            assert answer.ids == ids
        except RuntimeError as error:
            assert "interrupted" in str(error)
    check_alive(engine, wanted)


@pytest.mark.parametrize("number", [1, 2, 3, 6])
def test_an_interrupted_call_is_made_again(model: Engine, wanted, monkeypatch, number: int) -> None:
    """Where most of the time is spent, an interruption costs the others nothing, or they are told."""
    engine = again(model)
    answers = [engine.submit(c, GREEDY) for c in questions()[:4]]
    llm = model.model.llm
    monkeypatch.setattr(llm, "head", Fails(KeyboardInterrupt(), number, llm.head))
    with pytest.raises(KeyboardInterrupt):
        in_time(answers[0].result)
    for answer, ids in zip(answers, wanted, strict=True):
        try:
            in_time(answer.result)
            assert answer.ids == ids
        except RuntimeError as error:
            assert "interrupted" in str(error) and number in (2, 3)  # between the prompts of one step
    check_alive(engine, wanted)


class Broken:
    """A constraint that fails."""

    def __init__(self, vocab: int, way: str) -> None:
        self.vocab, self.way = vocab, way

    def allowed(self) -> torch.Tensor:
        if self.way == "allowed":
            raise ValueError("no more")
        return torch.ones(self.vocab + (self.way == "long"), dtype=torch.bool)

    def accept(self, token: int) -> None:
        if self.way == "accept":
            raise ValueError("no more")


@pytest.mark.parametrize("way", ["allowed", "accept", "long"])
def test_a_constraint_that_fails_is_its_askers(model: Engine, wanted, way: str) -> None:
    engine = again(model)
    bad = engine.submit(questions()[4], GREEDY, Asking(constraint=Broken(model.model.llm.vocab_size, way)))
    answers = in_time(lambda: submitted(engine, questions()[:4], [GREEDY] * 4))
    check_ids(engine, questions()[:4], [a.ids for a in answers], wanted)
    with pytest.raises((ValueError, RuntimeError)):
        in_time(bad.result)
    check_alive(engine, wanted)


def test_log_probabilities_below_none() -> None:
    with pytest.raises(UserError, match="logprobs is -1"):
        Asking(logprobs=-1)


def test_a_list_longer_than_the_queue(model: Engine, wanted) -> None:
    """It waits for its own answers; only others fill the queue."""
    engine = again(model, queue=1, max_batch=2)
    assert in_time(lambda: engine.generate_ids(questions()[:4] * 2, GREEDY)) == wanted * 2


def test_who_waits_behind_others_may_leave(model: Engine, wanted) -> None:
    """By ``cancel`` and by time-out, while the only place is taken."""
    engine = again(model, max_batch=1)
    first = engine.submit(questions()[0], GREEDY.replace(max_new_tokens=300, min_length=300))
    second = engine.submit(questions()[1], GREEDY)
    late = engine.submit(questions()[2], GREEDY, Asking(timeout=0.0))
    gone = engine.submit(questions()[3], GREEDY)
    in_time(lambda: next(iter(first)))  # which leaves it
    first = engine.submit(questions()[0], GREEDY.replace(max_new_tokens=300, min_length=300), Asking(priority=1))
    found: list[int] = []
    for answer in (late, gone):
        if answer is gone:
            gone.cancel()
        in_time(answer.result)
        found.append(len(first.ids))
    assert (late.finish, gone.finish) == ("timeout", "cancelled") and not first.is_over and max(found) < 300
    first.cancel()
    in_time(second.result)
    assert second.ids == wanted[1]


def test_the_callers_autocast_is_theirs(model: Engine, wanted) -> None:
    """Who happens to take the steps changes no answer, and nothing that is kept."""
    engine = again(model, block=16)
    with torch.autocast("cpu", torch.bfloat16):
        submitted(engine, questions()[:4], [GREEDY] * 4)
        asked = [engine.submit(c, GREEDY) for c in questions()[:4]]
    answers = [*asked, *submitted(engine, questions()[:4], [GREEDY] * 4)]
    for answer in answers:
        answer.result()
    check_ids(engine, questions()[:4] * 2, [a.ids for a in answers], wanted * 2)
    fresh = again(model, prefix_mib=0, feature_mib=0)
    told_of = [e.submit(questions()[1], GREEDY, Asking(logprobs=0)) for e in (engine, fresh)]
    for answer in told_of:
        answer.result()
    close = zip(told_of[0].logprobs, told_of[1].logprobs, strict=True)
    assert all(abs(a.logprob - b.logprob) < 1e-4 for a, b in close) and told_of[0].usage.cached


def test_what_is_forgotten_stays_forgotten(model: Engine) -> None:
    """A prompt of which a part was read before leaves nothing behind that was computed with other weights."""
    engine = again(model, block=16, prefill=16)
    other = engine.submit(ask("x"), GREEDY.replace(max_new_tokens=40, min_length=40))
    long = engine.submit(ask(LONG * 2, 1), GREEDY)
    pieces = iter(other)
    while not len(engine.prefixes):
        next(pieces)
    assert long.times.first is None
    engine.forget()
    in_time(long.result)
    assert len(engine.prefixes) == 0
    in_time(engine.submit(ask(LONG * 2, 1), GREEDY).result)
    assert len(engine.prefixes) > 0


def test_features_that_were_being_encoded_are_forgotten(model: Engine, monkeypatch) -> None:
    engine = again(model)
    encode = model.model.encode

    def changed(*args: Any) -> Any:
        engine.forget()
        return encode(*args)

    monkeypatch.setattr(model.model, "encode", changed)
    engine.submit(questions()[0], GREEDY).cancel()
    assert len(engine.features) == 0 and engine.stats().feature_misses == 1


def test_tasks_get_their_answers_while_others_begin(model: Engine, wanted, monkeypatch) -> None:
    """Another thread takes an answer out of the queue; the thread in the background does not think that all is done."""
    import asyncio

    engine = again(model)
    chooser = engine.scheduler.chooser
    begin = chooser.begin

    def slowly(row: Any) -> None:
        time.sleep(0.3)  # neither waiting nor among the rows
        begin(row)

    monkeypatch.setattr(chooser, "begin", slowly)
    late: list[Answer] = []

    async def ask_soon() -> str:
        answer = engine.submit(questions()[0], GREEDY.replace(max_new_tokens=40, min_length=40))
        late.append(answer)
        thread = threading.Thread(target=lambda: next(iter(answer), None), daemon=True)  # which leaves it after a piece
        answer.cancel, cancel = lambda: None, answer.cancel  # type: ignore[method-assign]
        thread.start()
        await asyncio.sleep(0.1)
        text = await asyncio.wait_for(told(answer), 20)
        cancel()
        return text

    in_threads([lambda: asyncio.run(ask_soon())])
    assert len(late[0].ids) == 40
