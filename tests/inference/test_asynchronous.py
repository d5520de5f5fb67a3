"""The engine with asyncio: many tasks and threads share one model, and a cancelled task writes no further."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from vlm.common.errors import PromptError, UserError
from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.batching.asynchronous import AsyncAnswers, asked
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION
from vlm.inference.streaming import join

GREEDY = EVALUATION.replace(max_new_tokens=8)
LONG = EVALUATION.replace(max_new_tokens=200, min_length=201)
QUESTIONS = ["Hello?", "What is this?", "And now?", "Who are you?", "Why?"]


class Both(Engine, AsyncAnswers):
    """What an engine is."""

    answers: list[Answer]

    def submit(self, *args: object, **options: object) -> Answer:  # type: ignore[override]
        answer = Engine.submit(self, *args, **options)  # type: ignore[arg-type]
        self.answers.append(answer)
        return answer


@pytest.fixture
def model(engine) -> Iterator[Both]:
    result = Both(engine.model, engine.processor)
    result.answers = []
    yield result
    for answer in result.answers:
        answer.cancel()
    until(lambda: all(answer.is_over for answer in result.answers))


def until(reached, seconds: float = 5.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def test_awaited_and_streamed_answers_are_the_plain_ones(model, image) -> None:
    red = image("red").source

    async def ask() -> tuple[str, str, str, list[str]]:
        whole = await model.achat("What is this?", image=red, generation=GREEDY)
        streamed = join([piece async for piece in model.astream("What is this?", GREEDY, image=red)])
        beams = await model.achat("What is this?", red, generation=GREEDY, num_beams=2)
        return whole, streamed, beams, await model.agenerate(QUESTIONS, GREEDY, batch_size=2)

    whole, streamed, beams, several = asyncio.run(ask())
    assert whole == streamed == model.chat("What is this?", image=red, generation=GREEDY)
    assert beams == model.chat("What is this?", image=red, generation=GREEDY, num_beams=2)
    assert several == model.generate(QUESTIONS, GREEDY, batch_size=1)


def test_beams_come_as_one_piece(model) -> None:
    async def ask() -> list[str]:
        return [piece async for piece in model.astream("Hello?", GREEDY, num_beams=2)]

    assert asyncio.run(ask()) == [model.chat("Hello?", generation=GREEDY, num_beams=2)]


def test_the_loop_runs_on_while_a_prompt_is_prepared(model, monkeypatch) -> None:
    """Encoding an image takes seconds on a large model; here it waits until the loop has done something else."""
    ran = threading.Event()
    prepare = model.processor.encode_chat

    def slow(messages):
        assert ran.wait(5), "the loop stood still"
        return prepare(messages)

    monkeypatch.setattr(model.processor, "encode_chat", slow)

    async def ask() -> str:
        task = asyncio.ensure_future(model.achat("Hello?", generation=GREEDY))
        await asyncio.sleep(0.02)
        assert not task.done()
        ran.set()
        return await task

    assert asyncio.run(ask())


def test_leaving_the_loop_ends_the_answer(model) -> None:
    async def ask() -> None:
        stream = model.astream("Hello?", LONG)
        await anext(stream)
        await stream.aclose()
        (answer,) = model.answers
        assert not answer.is_wanted

    asyncio.run(ask())
    until(lambda: model.answers[0].is_over)
    assert model.answers[0].finish == "cancelled" and len(model.answers[0].ids) < 200


def test_a_cancelled_task_ends_its_answer(model) -> None:
    async def ask() -> None:
        task = asyncio.ensure_future(model.achat("Hello?", generation=LONG))
        while not (model.answers and model.answers[0].ids):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    until(lambda: model.answers[0].is_over)
    assert model.answers[0].finish == "cancelled"


def test_a_task_cancelled_before_its_prompt_is_there_leaves_no_answer(model, monkeypatch) -> None:
    began, go = threading.Event(), threading.Event()
    prepare = model.processor.encode_chat

    def slow(messages):
        began.set()
        assert go.wait(5)
        return prepare(messages)

    monkeypatch.setattr(model.processor, "encode_chat", slow)

    async def ask() -> None:
        task = asyncio.ensure_future(model.achat("Hello?", generation=LONG))
        while not began.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not model.answers
        go.set()

    asyncio.run(ask())
    until(lambda: model.answers and model.answers[0].is_over)
    assert model.answers[0].finish == "cancelled" and not model.answers[0].ids


def test_one_bad_question_of_a_list_ends_the_others(model) -> None:
    async def ask() -> None:
        await model.agenerate(["Hello?", "", "word " * 400, "Why?"], LONG, batch_size=4)

    with pytest.raises(PromptError, match="nothing was asked"):
        asyncio.run(ask())
    until(lambda: all(answer.is_over for answer in model.answers))
    assert {answer.finish for answer in model.answers} <= {"cancelled"}


def test_faults_are_raised_where_they_are_awaited(model) -> None:
    async def ask(**options) -> None:
        await model.achat("Hello?", **options)

    with pytest.raises(UserError, match="max_tokens"):
        asyncio.run(ask(max_tokens=3))
    with pytest.raises(PromptError, match="in place of generation options"):
        asyncio.run(ask(generation="cat.jpg"))


def test_a_failed_preparation_that_nobody_waits_for_is_silent(caplog) -> None:
    def fail() -> Answer:
        time.sleep(0.03)
        raise PromptError("late")

    async def ask() -> None:
        task = asyncio.ensure_future(asked(fail))
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.06)

    asyncio.run(ask())
    assert not caplog.records


def test_timeout_of_an_awaited_answer(model) -> None:
    async def ask() -> str:
        return await model.achat("Hello?", generation=LONG, asking=Asking(timeout=0.05))

    text = asyncio.run(ask())
    assert model.answers[0].finish == "timeout" and text == model.answers[0].text


def test_threads_and_tasks_share_a_model(model) -> None:
    expected = model.generate(QUESTIONS, GREEDY, batch_size=1)

    async def tasks() -> list[str]:
        return list(await asyncio.gather(*(model.achat(q, generation=GREEDY) for q in QUESTIONS)))

    with ThreadPoolExecutor(6) as pool:
        threads = [pool.submit(model.chat, q, generation=GREEDY) for q in QUESTIONS]
        loop = pool.submit(asyncio.run, tasks())
        assert [t.result() for t in threads] == expected == loop.result()
