"""Who is answered when, and that nobody waits in vain when something breaks."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any

import pytest

from vlm.common.errors import BusyError, PromptError
from vlm.common.types import Message
from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION, Generation
from vlm.systems.minigpt4.template import Vicuna0
from vlm.testing import tiny_engine

from .conftest import LLM, SIZES


@pytest.fixture
def engine() -> Engine:
    made = tiny_engine(LLM, Vicuna0(Vicuna0.Config()), **SIZES)
    made.generate(["Hi."], max_new_tokens=1, do_sample=False)  # the scheduler is there
    return made


async def read(answer: Answer) -> str:
    return "".join([str(piece) async for piece in answer])


def ask(engine: Engine, tenant: str = "", tokens: int = 3) -> Answer:
    return engine.submit("Hi.", None, Asking(tenant=tenant), max_new_tokens=tokens, min_length=tokens, do_sample=False)


def test_tenants_take_turns_in_the_queue(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.scheduler, "serving", dataclasses.replace(engine.scheduler.serving, max_batch=1))
    monkeypatch.setattr(engine.scheduler.shared, "serving", engine.scheduler.serving)
    first = [ask(engine, "alice") for _ in range(6)]
    other = ask(engine, "bob")
    urgent = engine.submit("Hi.", None, Asking(tenant="alice", priority=1), max_new_tokens=1)
    for answer in [*first, other, urgent]:
        answer.result()
    assert urgent.times.ended < first[0].times.ended
    assert other.times.ended < first[2].times.ended
    ends = [answer.times.ended for answer in first]
    assert ends == sorted(ends)


def test_a_question_that_cannot_begin_ends_with_its_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, name in ((engine.scheduler.chooser, "begin"), (engine.scheduler.shared, "begin")):
        with monkeypatch.context() as patch:
            patch.setattr(part, name, _broken)
            answer = ask(engine)
            with pytest.raises(ZeroDivisionError):
                answer.result()
            with pytest.raises(ZeroDivisionError):
                asyncio.run(asyncio.wait_for(read(ask(engine)), 5))
        assert ask(engine).result() == ask(engine).result()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.failed) == (0, 0, 4)


@pytest.mark.parametrize("name", ["_wake", "_fail_all", "_count_rows"])
def test_the_thread_in_the_background_survives(engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as patch:
        if name == "_fail_all":
            patch.setattr(engine.scheduler.shared, "read", _broken)
            patch.setattr(engine.scheduler._failing, "fail", _broken)
        else:
            patch.setattr(engine.scheduler, name, _broken)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(asyncio.wait_for(read(ask(engine)), 5))
    assert asyncio.run(asyncio.wait_for(read(ask(engine)), 5)) == ask(engine).result()
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


def test_a_thread_that_cannot_start_is_told_and_tried_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        with pytest.raises(RuntimeError, match="new thread"):
            asyncio.run(read(ask(engine)))
    assert asyncio.run(asyncio.wait_for(read(ask(engine)), 5)) == ask(engine).result()


def test_questions_asked_together_are_answered_as_alone(engine: Engine, image: Any) -> None:
    greedy = Generation(max_new_tokens=4, do_sample=False, repetition_penalty=1.0)
    asked = [[Message("user", [image(color), text])] for color in ("red", "blue") for text in ("What?", "Which one?")]
    alone = [engine.submit(question, greedy).result() for question in asked]
    engine.forget()
    sizes, encode = list[int](), engine.model.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.model, "encode", lambda pixels, *more: sizes.append(len(pixels)) or encode(pixels, *more))
        answers = engine.submit_all(asked, greedy)
    assert [answer.result() for answer in answers] == alone and sizes == [2]  # different images, encoded at once
    with pytest.raises(PromptError, match="beam"):
        engine.submit_all(asked, greedy.replace(num_beams=2))


def test_all_questions_are_asked_together_or_none(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.scheduler, "serving", dataclasses.replace(engine.scheduler.serving, queue=2))
    with pytest.raises(BusyError):
        engine.submit_all(["Hi."] * 3, EVALUATION)
    assert len(engine.submit_all(["Hi."] * 2, EVALUATION)) == 2  # nothing of the three is left in the queue


def _broken(*_: Any) -> None:
    raise ZeroDivisionError
