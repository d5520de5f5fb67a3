"""Questions in flight: bounded, none held up by a long answer, and all ended when one fails."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from vlm.common.errors import BusyError, DataError, NotFiniteError
from vlm.inference.generation import EVALUATION
from vlm.tasks.in_flight import AHEAD, InFlight

SECONDS = 30


class Held:
    """An answer that ends when it is told to."""

    def __init__(self, text: str) -> None:
        self.text, self.over, self.cancelled = text, threading.Event(), False

    def result(self) -> str:
        assert self.over.wait(SECONDS)
        if self.text == "broken":
            raise NotFiniteError("no numbers")
        return self.text

    def cancel(self) -> None:
        self.cancelled = True
        self.over.set()


class Engine:
    allow_urls = False

    def __init__(self, long: str = "", refusals: int = 0) -> None:
        self.long, self.refusals = long, refusals
        self.asked: dict[str, Held] = {}
        self.most = 0
        self.lock = threading.Lock()

    def examples(self, conversations):
        return [[*messages] for messages in conversations]

    def generate(self, conversations, generation):
        raise NotFiniteError("the bridge computes no numbers")

    def submit(self, messages, generation) -> Held:
        text = messages[-1].text
        with self.lock:
            if self.refusals:
                self.refusals -= 1
                raise BusyError("full", retry_after=0.001)
            if text == "bad":
                raise DataError("bad: no image")
            answer = self.asked[text] = Held(text)
            self.most = max(self.most, sum(not a.over.is_set() for a in self.asked.values()))
        if text != self.long:
            answer.over.set()
        return answer


def texts(*names: str) -> dict:
    return {name: partial(str, name) for name in names}


def test_a_long_answer_holds_up_no_other():
    engine = Engine(long="q0")
    found: dict = {}
    for group in InFlight(engine, EVALUATION, 2).answers(texts(*(f"q{k}" for k in range(30)))):
        found |= group
        if len(found) == 29:
            assert "q0" not in found  # all others are there, though it was the first
            engine.asked["q0"].over.set()
    assert found == {f"q{k}": f"q{k}" for k in range(30)} and engine.most <= 2


def test_no_more_is_prepared_than_will_be_asked_soon():
    prepared: list[str] = []

    def question(name: str) -> str:
        prepared.append(name)
        return name

    answered = 0
    for group in InFlight(Engine(), EVALUATION, 2).answers({f"q{k}": partial(question, f"q{k}") for k in range(60)}):
        answered += len(group)
        assert len(prepared) <= answered + 2 + AHEAD
        time.sleep(0.01)  # whoever reads the answers is slow
    assert answered == len(prepared) == 60


def test_a_question_that_cannot_be_asked_is_told_and_a_full_engine_asked_again():
    found: dict = {}
    for group in InFlight(Engine(refusals=3), EVALUATION, 3).answers(texts("a", "bad", "b")):
        found |= group
    assert found["a"] == "a" and found["b"] == "b" and isinstance(found["bad"], DataError)


def test_when_one_answer_fails_the_others_are_ended():
    engine = Engine(long="long")
    with pytest.raises(NotFiniteError, match="the bridge"):
        for _ in InFlight(engine, EVALUATION, 2).answers(texts("long", "a", "broken", *map(str, range(20)))):
            pass
    assert engine.asked["long"].cancelled
