"""Horizontal bars with the interval of each number, in a table: values stay text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STYLES = ("one", "two", "three", "four")
"""CSS classes of the bars that stand for one thing each, in order."""


@dataclass(frozen=True)
class Bar:
    """One number.

    Attributes:
        label: what it is of; empty: the same as the bar above.
        value: the number; None: there is none.
        text: how it is written.
        interval: its bounds, which are drawn as whiskers; ``bounds`` is how they are written.
        top: the number at which a bar is full.
        style: CSS class.
        note: e.g. how many questions.
    """

    label: str
    value: float | None
    text: str
    interval: Sequence[float] | None = None
    bounds: str = ""
    top: float = 1.0
    style: str = "one"
    note: str = ""

    @property
    def width(self) -> str:
        """Percent of the drawing that the bar takes."""
        return percent(self.value, self.top)

    @property
    def whiskers(self) -> tuple[str, str] | None:
        """Where the whisker begins and ends, in percent; None without interval."""
        if self.interval is None or self.value is None:
            return None
        low, high = self.interval
        return percent(low, self.top), percent(high, self.top)


def percent(value: float | None, top: float) -> str:
    """A number as a share of ``top``, between 0 and 100 percent."""
    share = value / top if value is not None and top > 0 else 0.0
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%" if math.isfinite(share) else "0%"


def top_of(values: Iterable[float | None], share: bool) -> float:
    """Where the axis ends: 1 for shares, else the largest of the numbers."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return max([1.0, *known] if share else [*known, 0.0]) or 1.0
