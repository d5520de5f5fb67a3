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
        self.groups: list[list[str]] = []
        self.most = 0
        self.lock = threading.Lock()

    def examples(self, conversations):
        return [[*messages] for messages in conversations]

    def generate(self, conversations, generation):
        raise NotFiniteError("the bridge computes no numbers")

    def submit_all(self, conversations, generation) -> list[Held]:
        names = [messages[-1].text for messages in conversations]
        with self.lock:
            if self.refusals:
                self.refusals -= 1
                raise BusyError("full", retry_after=0.001)
            if "bad" in names:
                raise DataError("bad: no image")
            if "crash" in names:
                raise RuntimeError("out of memory")
            self.groups.append(names)
            answers = [self.asked.setdefault(name, Held(name)) for name in names]
            self.most = max(self.most, sum(not a.over.is_set() for a in self.asked.values()))
        for answer in answers:
            if answer.text != self.long:
                answer.over.set()
        return answers


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


def test_questions_are_asked_in_groups_whose_images_are_encoded_together():
    engine, found = Engine(long="q3"), {}
    for group in InFlight(engine, EVALUATION, 32).answers(texts(*(f"q{k}" for k in range(50)))):
        found |= group
        if len(found) == 49:
            engine.asked["q3"].over.set()
    assert found == {f"q{k}": f"q{k}" for k in range(50)} and engine.most <= 32
    assert sorted(name for names in engine.groups for name in names) == sorted(found)
    assert [len(names) for names in engine.groups[:5]] == [8] * 5  # of the 40 that are prepared at first


def test_in_a_group_those_that_cannot_be_asked_stand_alone():
    engine, found = Engine(refusals=2), {}
    for group in InFlight(engine, EVALUATION, 32).answers(texts("a", "b", "bad", *map(str, range(20)))):
        found |= group
    assert isinstance(found.pop("bad"), DataError)
    assert found == {name: name for name in ("a", "b", *map(str, range(20)))}


def test_what_ends_the_asking_of_a_group_ends_the_run():
    with pytest.raises(RuntimeError, match="out of memory"):
        for _ in InFlight(Engine(), EVALUATION, 32).answers(texts("a", "crash", *map(str, range(20)))):
            pass
