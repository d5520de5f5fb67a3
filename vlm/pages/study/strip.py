"""A number with its interval on an axis that all rows share; places are percent of the drawing's width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MARGIN = 0.04
"""Of an axis, at both ends, as a share of what it has to show."""


@dataclass(frozen=True)
class Scale:
    """An axis from ``low`` to ``high``."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float | None], centre: float | None = None) -> Scale:
        """An axis that shows all of these.

        Args:
            values: None and what is not finite are left out.
            centre: a number that is in the middle of the axis.
        """
        known = [v for v in values if v is not None and math.isfinite(v)] or [0.0, 1.0]
        low, high = min(known), max(known)
        if centre is not None:
            reach = max(high - centre, centre - low)
            low, high = centre - reach, centre + reach
        margin = MARGIN * (high - low) or abs(high) * 0.1 or 1.0
        return cls(low - margin, high + margin)

    def place(self, value: float) -> str:
        """Where a number is, in percent, between the ends."""
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(max(share, 0.0), 1.0):.2f}%" if math.isfinite(share) else "0%"


@dataclass(frozen=True)
class Strip:
    """What is drawn of one number: a dot, its interval, other numbers as short lines (CSS class, place), and zero."""

    at: str
    low: str = ""
    high: str = ""
    others: Sequence[tuple[str, str]] = ()
    zero: str = ""
    style: str = "one"


def strip(
    scale: Scale,
    value: float,
    bounds: Sequence[float] | None = None,
    others: Sequence[tuple[str, float]] = (),
    style: str = "one",
) -> Strip:
    """A number on an axis; zero is drawn where it is inside.

    Args:
        scale: the axis.
        value: the number.
        bounds: of its interval.
        others: CSS class and number of what is shown beside it.
        style: CSS class of dot and interval.
    """
    low, high = (scale.place(bound) for bound in bounds) if bounds is not None else ("", "")
    zero = scale.place(0.0) if scale.low < 0.0 < scale.high else ""
    return Strip(scale.place(value), low, high, [(name, scale.place(other)) for name, other in others], zero, style)
