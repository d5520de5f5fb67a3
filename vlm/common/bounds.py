"""Ranges of options, written into their types: ``depth: Count = 12`` is an integer of at least 1.

:mod:`vlm.config.schema` checks them while it reads a configuration; :func:`violations` checks an object that was
made in Python.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

INT_BITS = 64
"""Integers that need more bits are refused everywhere."""


@runtime_checkable
class Constraint(Protocol):
    """What a value of the right type must satisfy besides."""

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is allowed."""
        ...

    def describe(self, kind: str) -> str:
        """The allowed values in words, given the type's: "an integer" -> "an integer of at least 1"."""
        ...


@dataclass(frozen=True)
class Range:
    """A number's limits, each of them inclusive (``least``, ``most``) or exclusive (``above``, ``below``)."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def allows(self, value: Any) -> bool:
        """Whether the number is finite and within the limits."""
        return math.isfinite(value) and self.least <= value <= self.most and self.above < value < self.below

    def describe(self, kind: str) -> str:
        """For instance "a number above 0 and at most 1"."""
        limits = {"of at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        words = {word: str(limit) for word, limit in limits.items() if math.isfinite(limit)}
        if {"of at least", "at most"} <= set(words):
            return f"{kind} from {self.least} to {self.most}"
        return f"{kind} " + (" and ".join(f"{word} {limit}" for word, limit in words.items()) or "that is finite")


@dataclass(frozen=True)
class Matches:
    """A text's form: a regular expression for the whole of it, and the same in words."""

    pattern: str
    words: str

    def allows(self, value: Any) -> bool:
        """Whether the whole text matches."""
        return re.fullmatch(self.pattern, value) is not None

    def describe(self, kind: str) -> str:
        """The words."""
        return self.words


@dataclass(frozen=True)
class Once:
    """A list in which nothing occurs twice."""

    def allows(self, value: Sequence[Any]) -> bool:
        """Whether all items differ."""
        return all(item not in value[:index] for index, item in enumerate(value))

    def describe(self, kind: str) -> str:
        """For instance "a list of strings without repetition"."""
        return f"{kind} without repetition"


Count = Annotated[int, Range(least=1)]
Natural = Annotated[int, Range(least=0)]
BatchSize = Annotated[int, Range(1, 1_000_000)]
LAYERS = Range(1, 1000)
Depth = Annotated[int, LAYERS]
"""Layers."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""What every generator of random numbers takes."""
Port = Annotated[int, Range(0, 65535)]
Share = Annotated[float, Range(0, 1)]
Dropout = Annotated[float, Range(least=0, below=1)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
DEVICE_NAMES = Matches(
    r"auto|cpu|mps(:0)?|(cuda|xpu)(:([0-9]|[1-5][0-9]|6[0-3]))?",
    "auto, cpu, mps, cuda, cuda:N, xpu or xpu:N, N up to 63",
)
Device = Annotated[str, DEVICE_NAMES]


def constraints(kind: Any) -> Iterator[Constraint]:
    """The constraints of a type, also of the one type besides None in ``Count | None``."""
    if get_origin(kind) is Annotated:
        yield from (c for c in get_args(kind)[1:] if isinstance(c, Constraint))
    elif len(rest := [a for a in get_args(kind) if a is not type(None)]) == 1 and type(None) in get_args(kind):
        yield from constraints(rest[0])


def violations(options: Any) -> list[str]:
    """What is wrong with the values of a dataclass instance, whose types are right: one line for each field."""
    found = []
    cls: Any = type(options)
    for name, checks in _checks(cls):
        value = vars(options)[name]
        words = [c.describe("") for c in checks if value is not None and not c.allows(value)]
        found += [f"{name} is {value!r}, expected {text.strip().removeprefix('of ')}" for text in words]
    return found


@cache
def _checks(cls: Any) -> list[tuple[str, list[Constraint]]]:
    kinds = get_type_hints(cls, include_extras=True)
    return [(f.name, list(constraints(kinds[f.name]))) for f in fields(cls) if f.init]
