"""Reading plain data into dataclasses: types, unknown keys, choices, all problems at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from vlm.common.errors import ConfigError
from vlm.config.schema import ConfigProblems, Report, convert, dotted, read


@dataclass
class Inner:
    """Options inside options."""

    r: int
    alpha: float = 1.0


@dataclass
class Outer:
    """One of each kind."""

    size: int = 1
    rate: float = 0.5
    name: str = "x"
    on: bool = False
    mode: Literal["a", "b"] = "a"
    inner: Inner | None = None
    names: list[str] = field(default_factory=list)
    pair: tuple[float, float] = (0.0, 1.0)
    mean: Sequence[float] = ()
    table: dict[str, bool] = field(default_factory=dict)
    other: Any = None

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}, expected 0 or more")


def problems(data: Any, **texts: str) -> list[str]:
    report = Report(texts={(k,): v for k, v in texts.items()})
    read(Outer, data, (), report)
    return [str(p) for p in report.problems]


def test_values_arrive_typed() -> None:
    report = Report()
    got = read(Outer, {"rate": 2, "inner": {"r": 4}, "pair": [1, 2], "mean": [0.5], "table": {"k": True}}, (), report)
    assert not report.problems
    assert got == Outer(rate=2.0, inner=Inner(4), pair=(1.0, 2.0), mean=[0.5], table={"k": True})
    assert isinstance(got.rate, float)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"size": "big"}, ["size", "'big'", "an integer"]),
        ({"size": True}, ["size", "an integer"]),
        ({"size": 1.5}, ["size", "an integer"]),
        ({"rate": "fast"}, ["rate", "a number"]),
        ({"name": 3}, ["name", "a string"]),
        ({"on": "yes"}, ["on", "true or false"]),
        ({"mode": "c"}, ["mode", "'a'", "'b'"]),
        ({"names": "x"}, ["names", "a list"]),
        ({"names": ["x", 3]}, ["names.1", "a string"]),
        ({"pair": [1]}, ["pair", "a list"]),
        ({"table": [1]}, ["table", "a mapping"]),
        ({"inner": {"alpha": 2}}, ["inner.r", "missing"]),
        ({"inner": {"r": 1, "aplha": 2}}, ["inner.aplha", "did you mean 'alpha'"]),
        ({"siez": 3}, ["siez", "did you mean 'size'"]),
        ({"size": -1}, ["size is -1"]),
        ({"size": None}, ["size", "null"]),
        ([1], ["expected a mapping"]),
    ],
)
def test_each_fault_is_named(data: Any, words: list[str]) -> None:
    (text,) = problems(data)
    assert all(word in text for word in words), text


def test_all_faults_come_together() -> None:
    assert len(problems({"size": "a", "rate": "b", "mod": 1, "inner": {"q": 1}})) == 5


def test_an_option_for_a_string_keeps_its_text() -> None:
    report = Report(texts={("name",): "123"})
    assert read(Outer, {"name": 123}, (), report).name == "123"
    assert not report.problems


def test_unset_value_says_what_belongs_there() -> None:
    report = Report()
    fits, _ = convert(str, "???", ("model", "path"), report, "a folder")
    assert not fits
    assert str(report.problems[0]) == "model.path: must be set: a folder"


def test_problems_raise_together_with_places() -> None:
    report = Report(origins={("a",): "f.yaml:3"})
    report.add(("a", "b", 0), "wrong")
    report.add(("a", "b", 0), "wrong")
    report.add(("z",), "bad")
    with pytest.raises(ConfigError, match=r"2 problems\n  - a.b.0 \(f.yaml:3\): wrong\n  - z: bad") as caught:
        report.raise_if_any("cfg")
    assert isinstance(caught.value, ConfigProblems)
    assert [p.path for p in caught.value.problems] == ["a.b.0", "z"]
    assert dotted(("a", 0)) == "a.0"
