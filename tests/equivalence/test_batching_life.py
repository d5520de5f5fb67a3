"""Answers that come, go, fail and end early beside others, on one engine that many threads share."""

from __future__ import annotations

import gc
import time

import pytest
import torch

from vlm.common.errors import NotFiniteError
from vlm.common.types import Example, Message, Text
from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT
from vlm.inference.streaming import extend, join

from .batching_asking import GREEDY, alone, check_ids, in_tasks, in_threads, in_time, submitted
from .batching_subjects import SUBJECTS, again, ask, distinct, picture, questions

LONG = GREEDY.replace(max_new_tokens=18, min_length=18)


@pytest.fixture(scope="module")
def wanted(model: Engine) -> list[list[int]]:
    """Greedy answers to the seven questions."""
    rows = [alone(model, c, LONG) for c in questions()]
    assert distinct(rows, 17)
    return rows


@pytest.fixture
def engine(model: Engine) -> Engine:
    """One in which nothing has been asked."""
    return again(model)


def check(engine: Engine, answers: list[Answer], wanted: list[list[int]], numbers: list[int]) -> None:
    """The whole answers to these of the seven questions."""
    for answer in answers:
        answer.result()
    check_ids(engine, [questions()[i] for i in numbers], [a.ids for a in answers], [wanted[i] for i in numbers])


def test_cancelled_in_the_middle(engine: Engine, wanted: list[list[int]]) -> None:
    """By ``cancel``, and by leaving its pieces unread; the others go on, and so do those asked afterwards."""

    def work() -> None:
        answers = [engine.submit(c, LONG) for c in questions()]
        for number in (1, 4):
            for _ in answers[number]:
                if len(answers[number].ids) >= 3:
                    if number == 1:
                        answers[number].cancel()
                    break
        check(engine, [answers[i] for i in (0, 2, 3, 5, 6)], wanted, [0, 2, 3, 5, 6])
        for number in (1, 4):
            answers[number].result()
            assert answers[number].finish == "cancelled"
            assert 3 <= len(answers[number].ids) < 18
            assert answers[number].ids == wanted[number][: len(answers[number].ids)]
        check(engine, [engine.submit(questions()[1], LONG)], wanted, [1])

    in_time(work)


def test_cancelled_before_it_begins(engine: Engine, wanted: list[list[int]]) -> None:
    def work() -> None:
        answers = [engine.submit(c, LONG) for c in questions()[:3]]
        answers[2].cancel()
        answers[2].cancel()
        check(engine, answers[:2], wanted, [0, 1])
        assert answers[2].result() == "" or answers[2].finish == "cancelled"

    in_time(work)


def test_no_time_left(engine: Engine, wanted: list[list[int]]) -> None:
    def work() -> None:
        late = [engine.submit(questions()[i], LONG, Asking(timeout=0.0)) for i in (0, 2)]
        others = [engine.submit(questions()[i], LONG, Asking(timeout=600.0)) for i in (1, 3)]
        check(engine, others, wanted, [1, 3])
        assert [a.finish for a in others] == ["length"] * 2
        for answer, number in zip(late, (0, 2), strict=True):
            answer.result()
            assert answer.finish == "timeout"
            assert len(answer.ids) < 18 and answer.ids == wanted[number][: len(answer.ids)]

    in_time(work)


def spoilt(engine: Engine, conversation: list[Message]) -> Example:
    """The prompt of a conversation, its images not numbers."""
    [example] = engine.examples([conversation])
    return Example(example.ids, example.labels, [torch.full_like(m, torch.nan) for m in example.media])


def test_pixels_that_are_not_numbers_spoil_one_answer(engine: Engine, wanted: list[list[int]]) -> None:
    """Those beside it and those that come later, in whatever memory it leaves behind, are as always."""

    def work() -> None:
        answers = [engine.submit(questions()[i], LONG) for i in (0, 1)]
        bad = [engine.submit(spoilt(engine, questions()[i]), LONG) for i in (0, 2)]
        answers += [engine.submit(questions()[i], LONG) for i in (2, 3)]
        check(engine, answers, wanted, [0, 1, 2, 3])
        for answer in bad:
            with pytest.raises(NotFiniteError):
                answer.result()
            with pytest.raises(NotFiniteError):
                list(answer)
        check(engine, [engine.submit(questions()[4], LONG)], wanted, [4])
        check(engine, [engine.submit(c, LONG) for c in questions()], wanted, list(range(7)))

    in_time(work)


def test_a_weight_that_is_not_a_number_spoils_its_reader(tmp_path) -> None:
    """One row of the embeddings, which one prompt uses."""
    engine = SUBJECTS["llama"].make(tmp_path)
    asked = [ask("First of all, a dog.", 1), ask("zzz", 1), ask("And a street.", 2)]
    prompts = [set(e.ids) for e in engine.examples(asked)]
    want = [alone(engine, c) for c in asked]
    [row, *_] = sorted(prompts[1] - prompts[0] - prompts[2] - {i for ids in want for i in ids})
    with torch.no_grad():
        engine.model.llm.model.get_input_embeddings().weight[row] = torch.nan

    def work() -> None:
        for _ in range(2):
            answers = [engine.submit(c, GREEDY) for c in asked]
            with pytest.raises(NotFiniteError):
                answers[1].result()
            for number in (0, 2):
                answers[number].result()
                assert answers[number].ids == want[number]

    in_time(work)


def test_an_unusable_question_is_refused_at_once(engine: Engine, wanted: list[list[int]]) -> None:
    from vlm.common.errors import UserError

    def work() -> None:
        answers = [engine.submit(questions()[0], LONG)]
        with pytest.raises(UserError):
            engine.submit([Message("user", (Text("What? " * 600),))], LONG)
        with pytest.raises(UserError):
            engine.submit(questions()[0], LONG, no_such_option=1)
        answers.append(engine.submit(questions()[1], LONG))
        check(engine, answers, wanted, [0, 1])

    in_time(work)


def test_unread_answers_hold_nobody_up(engine: Engine, wanted: list[list[int]]) -> None:
    def work() -> None:
        for number in (6, 5, 4):
            engine.submit(questions()[number], LONG)  # nobody will read it
        gc.collect()
        pieces = iter(engine.submit(questions()[2], LONG))
        next(pieces)
        check(engine, [engine.submit(questions()[i], LONG) for i in (0, 1)], wanted, [0, 1])
        del pieces
        gc.collect()
        check(engine, [engine.submit(questions()[3], LONG)], wanted, [3])

    in_time(work)


def test_threads_share_an_engine(engine: Engine, wanted: list[list[int]]) -> None:
    """Sixteen threads with two questions each, asked in every way."""

    def some(thread: int) -> None:
        for turn in range(2):
            number = (thread + 2 * turn) % 7
            question = questions()[number]
            text = engine.processor.tokenizer.decode(wanted[number][:12]).strip()
            short = LONG.replace(max_new_tokens=12, min_length=9)
            way = (thread + turn) % 4
            if way == 0:
                check(engine, [engine.submit(question, LONG)], wanted, [number])
            elif way == 1:
                assert join(engine.stream(question, short)) == text
            elif way == 2:
                assert engine.generate([question], short) == [text]
            else:
                assert in_tasks(engine, [question], short) == [text]

    in_threads([lambda thread=thread: some(thread) for thread in range(16)])


def stops_of(engine: Engine, ids: list[int]) -> list[tuple[str, str]]:
    """Texts that begin within one token of an answer and end within a later one, with what precedes them."""
    decode = engine.processor.tokenizer.decode
    whole, found = decode(ids), []
    ends = [len(decode(ids[: n + 1])) for n in range(len(ids))]
    for at in range(2, len(ids) - 1):
        first, last = ends[at] - 1, ends[at + 1] + 1
        stop = whole[first:last]
        if "\ufffd" not in whole[: last + 1] and len(stop.strip()) > 1 and whole.find(stop) == first:
            found.append((stop, whole[:first]))
    return found


def test_stop_texts_are_never_shown(engine: Engine, wanted: list[list[int]]) -> None:
    """Not a part of one either, though it is spread over tokens."""
    tried = 0
    for number in range(7):
        for stop, before in stops_of(engine, wanted[number])[:3]:
            tried += 1
            answer = engine.submit(questions()[number], LONG.replace(stop=("@@@@", stop)))
            shown = ""
            for piece in answer:
                shown = extend(shown, piece)
                assert before.startswith(shown), (shown, before)
            assert shown.strip() == answer.result() == before.strip()
            assert answer.finish == "stop"
            assert answer.ids == wanted[number][: len(answer.ids)] and len(answer.ids) < 18
            silent = engine.submit(questions()[number], LONG.replace(stop=(stop,)))
            assert silent.result() == before.strip()
    assert tried >= 5


def test_tenants_with_the_same_question(model: Engine) -> None:
    """The same text about different images, and different texts about the same image, whoever asks first."""
    same_text = [ask("What is in the image?", 1), ask("What is in the image?", 2)]
    same_image = [ask("What is in the image? Nothing?", 1), ask("What is in the street? Nothing?", 1)]
    for asked in (same_text, same_image):
        want = [alone(model, c) for c in asked]
        assert distinct(want)
        for first in (0, 1):
            engine, order = again(model), (first, 1 - first, first)
            for who in order:  # one after another, then together
                assert submitted(engine, [asked[who]], [GREEDY], Asking(tenant=f"t{who}"))[0].ids == want[who]
            answers = [engine.submit(asked[who], GREEDY, Asking(tenant=f"t{who}")) for who in order]
            for answer, who in zip(answers, order, strict=True):
                answer.result()
                assert answer.ids == want[who]


def test_a_conversation_that_goes_on(model: Engine) -> None:
    """Second question and next turns, as an engine answers that has heard nothing before."""
    engine, history = again(model), ask("What is in the image?", 1, 2)
    for turn in range(3):
        answer = engine.submit(history, GREEDY)
        answer.result()
        assert answer.ids == alone(model, history)
        other = engine.submit(ask(f"Question {turn}?", 1, 2), GREEDY)
        other.result()
        assert other.ids == alone(model, ask(f"Question {turn}?", 1, 2))
        more = (Text(f"And then, the {turn}. time?"), *([picture(3)] if turn == 1 else []))
        history = [*history, Message("assistant", (Text(answer.text),)), Message("user", more)]


def test_a_seed_of_none_differs(engine: Engine) -> None:
    free = CHAT.replace(max_new_tokens=12, stop=())
    answers = submitted(engine, [questions()[0]] * 4, [free] * 4)
    assert len({a.text for a in answers}) > 1


def test_times_and_usage(engine: Engine) -> None:
    began = time.monotonic()
    answer = engine.submit(questions()[0], GREEDY)
    answer.result()
    assert began <= answer.times.asked <= answer.times.first <= answer.times.ended <= time.monotonic()
    assert answer.usage.prompt == engine.length(questions()[0]) and answer.usage.written == len(answer.ids)
    assert 0 <= answer.usage.cached <= answer.usage.prompt
