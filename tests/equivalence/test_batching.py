"""However a question is asked, and whatever is asked beside it, its answer is the one it gets alone.

Each kind of model answers seven questions of different lengths, with no, one and two images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch

from vlm.common.types import Message
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.inference.streaming import join

from .batching_asking import GREEDY, alone, check_ids, in_tasks, in_threads, in_time, submitted
from .batching_subjects import QUICK, SUBJECTS, distinct, questions


@dataclass
class Case:
    """An engine, what it is asked, and what it has to answer."""

    engine: Engine
    asked: list[list[Message]]
    greedy: Generation

    @cached_property
    def ids(self) -> list[list[int]]:
        """Greedy answers, one at a time."""
        return [alone(self.engine, c, self.greedy) for c in self.asked]

    @cached_property
    def texts(self) -> list[str]:
        return [self.engine.processor.tokenizer.decode(row).strip() for row in self.ids]

    @property
    def finishes(self) -> list[str]:
        """Why these answers end."""
        ends = self.engine.limits(self.greedy, self.engine.prompt(self.asked[:1], self.greedy))[1].eos
        return ["stop" if row[-1] in ends else "length" for row in self.ids]

    def check(self, got: list[list[int]]) -> None:
        check_ids(self.engine, self.asked, got, self.ids)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every kind of model for each test; what takes longer than a run of all tests allows is heavy."""
    quick = QUICK if metafunc.function is test_asked_at_once else ("llama",)
    marks = {name: () if name in quick else pytest.mark.heavy for name in SUBJECTS}
    metafunc.parametrize("case", [pytest.param(n, marks=m) for n, m in marks.items()], indirect=True, scope="module")


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    subject = SUBJECTS[request.param]
    engine = subject.make(tmp_path_factory.mktemp("subject"))
    yield Case(engine, questions(subject.images), GREEDY.replace(**subject.options))
    torch.set_num_threads(threads)


def test_asked_at_once(case: Case) -> None:
    assert distinct(case.ids)  # so that a mix-up would show
    answers = in_time(lambda: submitted(case.engine, case.asked, [case.greedy] * 7))
    case.check([a.ids for a in answers])
    assert [a.text for a in answers] == case.texts
    assert [a.finish for a in answers] == case.finishes
    assert [a.usage.prompt for a in answers] == [case.engine.length(c) for c in case.asked]
    assert all(a.usage.written == len(a.ids) and a.times.asked <= a.times.first <= a.times.ended for a in answers)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_in_batches(case: Case, size: int) -> None:
    rows = []
    for first in range(0, 7, size):
        rows += case.engine.generate_ids(case.asked[first : first + size], case.greedy)
    case.check(rows)
    if size == 3:
        assert case.engine.generate(case.asked, case.greedy, batch_size=size) == case.texts


def test_in_pieces(case: Case) -> None:
    """By ``stream``, by an answer's pieces, and by ``async for``."""
    few = [1, 2, 3]
    asked = [case.asked[i] for i in few]
    assert [join(case.engine.stream(c, case.greedy)) for c in asked] == [case.texts[i] for i in few]
    answers = [case.engine.submit(c, case.greedy) for c in asked]
    assert [join(a) for a in answers] == [case.texts[i] for i in few]
    assert in_tasks(case.engine, asked, case.greedy) == [case.texts[i] for i in few]


def test_drawn(case: Case) -> None:
    """Each with a seed of its own; the same question with two seeds has two answers."""
    drawn = case.greedy.replace(do_sample=True, temperature=1.3, top_p=0.95)
    asked = [case.asked[i] for i in (2, 0, 0, 4)]
    options = [drawn.replace(seed=seed) for seed in (1, 2, 3, 2)]
    want = [alone(case.engine, c, g) for c, g in zip(asked, options, strict=True)]
    assert distinct(want)
    got = [a.ids for a in in_time(lambda: submitted(case.engine, asked, options))]
    assert got == want


@pytest.mark.heavy
def test_coming_and_going(case: Case) -> None:
    """Threads ask with pauses between, some give up in the middle; answers differ in length and rule."""
    engine, tokenizer = case.engine, case.engine.processor.tokenizer
    long = case.greedy.replace(max_new_tokens=24, min_length=20)
    drawn = long.replace(do_sample=True, seed=5, max_new_tokens=20)
    wanted = {
        (i, name): alone(engine, c, g)
        for i, c in enumerate(case.asked)
        for name, g in (("short", case.greedy), ("long", long), ("drawn", drawn))
    }

    def ask(number: int) -> None:
        for turn in range(6):
            i = (number * 3 + turn) % 7
            name = ("short", "long", "drawn")[(number + turn) % 3]
            time.sleep(0.003 * ((number * 7 + turn * 5) % 11))
            answer = engine.submit(case.asked[i], {"short": case.greedy, "long": long, "drawn": drawn}[name])
            if (number + turn) % 4 == 3:
                for _ in answer:
                    if len(answer.ids) >= 5:
                        break
                assert answer.ids == wanted[i, name][: len(answer.ids)]
            elif turn % 2:
                assert join(answer) == tokenizer.decode(wanted[i, name]).strip()
            else:
                answer.result()
                assert answer.ids == wanted[i, name]

    in_threads([lambda number=number: ask(number) for number in range(8)])
