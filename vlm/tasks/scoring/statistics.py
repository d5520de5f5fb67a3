"""Numbers with intervals: a metric keeps a row per resampled unit, so that any number can be drawn again from rows.

A unit is what is independent of the others: a question, or an image where several questions share one. The number is a
function of the rows alone (a mean, an F1, BLEU): :data:`TOTALS` names it, so that rows stored in a file can be
compared with those of another run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from vlm.common.errors import DataError, unknown

Rows = npt.NDArray[np.float64]  # [units, columns]
Total = Callable[[Rows], float]
T = TypeVar("T", bound=Total)

DRAWS = 2000
"""Resamples of an interval and permutations of a test."""
TOTALS: dict[str, Total] = {}
"""Name -> how the rows of some units make a number."""


def total(name: str) -> Callable[[T], T]:
    """Decorator: adds a function of rows to :data:`TOTALS`."""

    def add(function: T) -> T:
        TOTALS[name] = function
        return function

    return add


@total("mean")
def mean(rows: Rows) -> float:
    """The mean of the first column."""
    return float(rows[:, 0].mean())


@total("ratio")
def ratio(rows: Rows) -> float:
    """The sum of the first column over that of the second; 0 where that is 0."""
    above, below = rows[:, 0].sum(), rows[:, 1].sum()
    return float(above / below) if below else 0.0


@total("f1")
def f1(rows: Rows) -> float:
    """The harmonic mean of precision and recall; columns: true positives, false positives, false negatives."""
    hit, false, missed = rows[:, :3].sum(axis=0)
    return float(2 * hit / (2 * hit + false + missed)) if hit else 0.0


@dataclass(frozen=True)
class Metric:
    """One number of a benchmark, with what it is made of.

    Attributes:
        label: e.g. ``accuracy``.
        units: name of each row, e.g. the id of a question; the same units in every run over the same data.
        rows: [units, columns].
        total: key of :data:`TOTALS`.
        groups: per unit the group (a question type) whose number is given as well; None: none.
        unit: ``share`` of 1, shown in percent, or another ``number``.
    """

    label: str
    units: Sequence[str]
    rows: Rows
    total: str = "mean"
    groups: Sequence[str | None] = ()
    unit: Literal["share", "number"] = "share"

    def value(self, picked: Any = slice(None)) -> float | None:
        """The number of some units (by default all); None without units."""
        rows = self.rows[picked]
        return function_of(self.total)(rows) if len(rows) else None

    def by_group(self) -> dict[str, tuple[float, int]]:
        """Number and count of units of each group, in the order of their names."""
        found: dict[str, list[int]] = {}
        for k, group in enumerate(self.groups):
            if group is not None:
                found.setdefault(group, []).append(k)
        return {g: (function_of(self.total)(self.rows[found[g]]), len(found[g])) for g in sorted(found)}

    def stored(self) -> dict[str, Any]:
        """As JSON-ready data; :func:`restored` reads it."""
        return {
            "label": self.label, "units": list(self.units), "rows": self.rows.tolist(), "total": self.total,
            "groups": list(self.groups), "unit": self.unit,
        }  # fmt: skip


def restored(data: dict[str, Any], where: str = "") -> Metric:
    """A stored metric. Raises DataError: data of another form."""
    try:
        rows = np.asarray(data["rows"], dtype=np.float64)
        if rows.ndim != 2 or len(rows) != len(data["units"]) or len(data["groups"]) not in (0, len(rows)):
            raise ValueError(f"rows of shape {rows.shape} for {len(data['units'])} units")
        result = Metric(data["label"], data["units"], rows, data["total"], data["groups"], data["unit"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not the values of a metric ({error})", fix="evaluate again") from None
    function_of(result.total)
    return result


def per_item(label: str, units: Sequence[str], values: npt.ArrayLike, **more: Any) -> Metric:
    """The metric that is the mean of one value per unit."""
    return Metric(label, units, np.asarray(values, dtype=np.float64).reshape(len(units), 1), **more)


def function_of(name: str) -> Total:
    """Raises DataError: no such total."""
    if name not in TOTALS:
        raise DataError(unknown("total", name, sorted(TOTALS)))
    return TOTALS[name]


def interval(runs: Sequence[Metric], level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> list[float] | None:
    """Bounds of a number by a percentile bootstrap over units; None without units.

    Args:
        runs: the same metric of one run, or of several over the same units, whose mean counts.
        level: coverage of the bounds.
        draws: number of resamples.
        seed: of the resampling.
    """
    count, rng = len(runs[0].units), np.random.default_rng(seed)
    if not count:
        return None
    if runs[0].total == "mean":
        values = _means(np.mean([run.rows[:, 0] for run in runs], axis=0), draws, rng)
    else:
        picks = (rng.integers(0, count, count) for _ in range(draws))
        values = np.asarray([np.mean([run.value(pick) for run in runs]) for pick in picks])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def _means(values: npt.NDArray[np.float64], draws: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Means of resamples: where many values are equal, only how often each is drawn matters."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) * 4 <= len(values):
        return rng.multinomial(len(values), counts / len(values), size=draws) @ distinct / len(values)
    return np.asarray([values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)])


@dataclass(frozen=True)
class Difference:
    """A number of two runs over the same units, and whether they differ.

    Attributes:
        first, second: the numbers.
        interval: 95 % bounds of ``second - first`` by a bootstrap over units.
        p: of a paired permutation test, two-sided: how often exchanging the runs unit by unit gives so large a
            difference.
        changed: per unit ``second - first`` of the first column, for a mean; empty for other totals.
    """

    label: str
    first: float
    second: float
    interval: Sequence[float]
    p: float
    changed: dict[str, float] = field(default_factory=dict)


def difference(a: Metric, b: Metric, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Compare two runs over the same units, whatever their order.

    Raises DataError: the units or the totals differ.
    """
    places = {unit: k for k, unit in enumerate(b.units)}
    if set(a.units) != set(places) or a.total != b.total or not len(a.units):
        only = len(set(a.units) - set(places)), len(set(places) - set(a.units))
        raise DataError(
            f"{a.label}: the runs have other questions ({only[0]} only in the first, {only[1]} only in the second)",
            fix="compare runs over the same questions",
        )
    first, second = a.rows, b.rows[[places[unit] for unit in a.units]]
    of, rng = function_of(a.total), np.random.default_rng(seed)
    found = of(second) - of(first)
    drawn, extreme = [], 0
    for _ in range(draws):
        pick = rng.integers(0, len(first), len(first))
        drawn.append(of(second[pick]) - of(first[pick]))
        swap = rng.random(len(first)) < 0.5
        swapped = of(np.where(swap[:, None], first, second)) - of(np.where(swap[:, None], second, first))
        extreme += abs(swapped) >= abs(found) - 1e-12
    low, high = np.quantile(drawn, [0.025, 0.975])
    changed = dict(zip(a.units, (second[:, 0] - first[:, 0]).tolist(), strict=True)) if a.total == "mean" else {}
    return Difference(a.label, of(first), of(second), [float(low), float(high)], (extreme + 1) / (draws + 1), changed)
