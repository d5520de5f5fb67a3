"""Numbers with intervals: a metric keeps a row per resampled unit, so that any number can be drawn again from rows.

A unit is what is independent of the others: a question, or an image where several questions share one. The number is a
function of the rows alone (a mean, an F1, BLEU): :data:`TOTALS` names it, so that rows stored in a file can be
compared with those of another run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from vlm.common.errors import DataError, unknown

Rows = npt.NDArray[np.float64]  # [units, columns]
Total = Callable[[Rows], float]
T = TypeVar("T", bound=Total)
UnitOf = Literal["share", "number"]
Better = Literal["higher", "lower", ""]

DRAWS = 2000
"""Resamples of an interval and permutations of a test."""
FEW = 64
"""Drawing how often each distinct row occurs costs about as much as drawing this many units."""
TOTALS: dict[str, Total] = {}
"""Name -> how the rows of some units make a number."""
SUMMED: set[str] = set()
"""Totals that need only the sum of the rows of each column: they are the same for one row with these sums."""


def total(name: str, summed: bool = False) -> Callable[[T], T]:
    """Decorator: adds a function of rows to :data:`TOTALS`; ``summed``: to :data:`SUMMED` too, which is much faster."""

    def add(function: T) -> T:
        TOTALS[name] = function
        if summed:
            SUMMED.add(name)
        return function

    return add


@total("mean")
def mean(rows: Rows) -> float:
    """The mean of the first column."""
    return float(rows[:, 0].mean())


@total("ratio", summed=True)
def ratio(rows: Rows) -> float:
    """The sum of the first column over that of the second; 0 where that is 0."""
    above, below = rows[:, 0].sum(), rows[:, 1].sum()
    return float(above / below) if below else 0.0


@total("f1", summed=True)
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
        better: which numbers are: ``higher``, ``lower``, or none (a share of answers that are yes).
    """

    label: str
    units: Sequence[str]
    rows: Rows
    total: str = "mean"
    groups: Sequence[str | None] = ()
    unit: UnitOf = "share"
    better: Better = "higher"

    def __post_init__(self) -> None:
        """Names of groups are texts, whatever a record has."""
        texts = [None if group is None else str(group) for group in self.groups]
        object.__setattr__(self, "groups", texts)

    def value(self, picked: Any = slice(None)) -> float | None:
        """The number of some units (by default all); None without units."""
        rows = self.rows[picked]
        return function_of(self.total)(rows) if len(rows) else None

    def part(self, picked: Sequence[int]) -> Metric:
        """The metric of some units."""
        groups = [self.groups[k] for k in picked] if self.groups else ()
        return replace(self, units=[self.units[k] for k in picked], rows=self.rows[list(picked)], groups=groups)

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
            "groups": list(self.groups), "unit": self.unit, "better": self.better,
        }  # fmt: skip


def restored(data: dict[str, Any], where: str = "") -> Metric:
    """A stored metric. Raises DataError: data of another form."""
    try:
        names = [str(data["label"]), str(data["total"]), data["unit"], data.get("better", "higher")]
        units, groups = list(map(str, data["units"])), [None if g is None else str(g) for g in data["groups"]]
        rows = np.asarray(data["rows"], dtype=np.float64)
        rows = rows if units else rows.reshape(0, 1)
        if rows.ndim != 2 or len(rows) != len(units) or len(groups) not in (0, len(units)):
            raise ValueError(f"rows of shape {rows.shape} and {len(groups)} groups for {len(units)} units")
        if len(set(units)) != len(units) or not np.isfinite(rows).all():
            raise ValueError("a unit occurs twice, or a value is not finite")
        if names[2] not in get_args(UnitOf) or names[3] not in get_args(Better):
            raise ValueError(f"unit {names[2]!r}, better {names[3]!r}")
        result = Metric(names[0], units, rows, names[1], groups, names[2], names[3])
        result.value()  # raises where there are too few columns
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise DataError(f"{where}: not the values of a metric ({error})", fix="evaluate again") from None
    return result


def per_item(label: str, units: Sequence[str], values: npt.ArrayLike, **more: Any) -> Metric:
    """The metric that is the mean of one value per unit."""
    return Metric(label, units, np.asarray(values, dtype=np.float64).reshape(len(units), 1), **more)


def aligned(runs: Sequence[Metric]) -> list[Metric]:
    """The runs over the units that all of them have, in the order of the first."""
    units = list(runs[0].units)
    if all(list(run.units) == units for run in runs):
        return list(runs)
    places = [{unit: k for k, unit in enumerate(run.units)} for run in runs]
    shared = [unit for unit in units if all(unit in own for own in places)]
    return [run.part([own[unit] for unit in shared]) for run, own in zip(runs, places, strict=True)]


def averaged(runs: Sequence[Metric]) -> Metric:
    """One metric for several runs over the same units: the mean of their rows for a mean, else the first run's."""
    if len(runs) == 1 or runs[0].total != "mean":
        return runs[0]
    return replace(runs[0], rows=np.mean([run.rows[:, :1] for run in runs], axis=0))


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
    if not len(runs[0].units):
        return None
    values = np.mean(resampled(runs, draws, seed), axis=0)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def resampled(runs: Sequence[Metric], draws: int = DRAWS, seed: int = 0) -> Rows:
    """The number of each run [runs, draws] over units that are drawn again, the same units for all runs.

    Args:
        runs: the same metric of runs over the same units, in one order (:func:`aligned`).
        draws: number of resamples.
        seed: of the resampling.
    """
    return _drawn([run.rows for run in runs], runs[0].total, draws, np.random.default_rng(seed))


def exchanged(first: Sequence[Metric], second: Sequence[Metric], draws: int = DRAWS, seed: int = 0) -> Rows:
    """The mean difference of pairs of runs [draws] where units, each with probability 1/2, have exchanged their rows.

    A unit is exchanged in all pairs or in none.

    Args:
        first, second: the same metric of runs over the same units, in one order (:func:`aligned`); pairs by place.
        draws: number of permutations.
        seed: of the permutations.
    """
    pairs = [(a.rows, b.rows) for a, b in zip(first, second, strict=True)]
    return np.asarray(_swapped(pairs, first[0].total, draws, np.random.default_rng(seed)).mean(axis=0))


def _drawn(runs: Sequence[Rows], name: str, draws: int, rng: np.random.Generator) -> Rows:
    """The number of each run [runs, draws] for units that are drawn again, the same units for all runs."""
    of, count = function_of(name), len(runs[0])
    if name != "mean" and name not in SUMMED:
        picks = (rng.integers(0, count, count) for _ in range(draws))
        return np.asarray([[of(rows[pick]) for rows in runs] for pick in picks]).T
    runs = [rows[:, :1] for rows in runs] if name == "mean" else runs
    sums = np.split(_sums(np.concatenate(runs, axis=1), draws, rng), len(runs), axis=1)
    return np.asarray([_totals(name, found, count) for found in sums])


def _totals(name: str, sums: Rows, count: int) -> Rows:
    """The number for each row of sums over ``count`` units."""
    if name == "mean":
        return sums[:, 0] / count
    if name in ("ratio", "f1"):
        above, below = (
            (sums[:, 0], sums[:, 1]) if name == "ratio" else (2 * sums[:, 0], 2 * sums[:, 0] + sums[:, 1] + sums[:, 2])
        )
        return np.divide(above, below, out=np.zeros(len(sums)), where=below != 0)
    return np.asarray([function_of(name)(row[None]) for row in sums])


def _sums(rows: Rows, draws: int, rng: np.random.Generator) -> Rows:
    """Sums [draws, columns] of resampled rows: where many are equal, only how often each is drawn matters."""
    count = len(rows)
    if (found := _distinct(rows)) is not None:
        return rng.multinomial(count, found[1] / count, size=draws) @ found[0]
    times = (np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(draws))
    return np.asarray([t @ rows for t in times])


def _halves(rows: Rows, draws: int, rng: np.random.Generator) -> Rows:
    """Sums [draws, columns] of rows of which each is taken with probability 1/2."""
    if (found := _distinct(rows)) is not None:
        return rng.binomial(found[1], 0.5, size=(draws, len(found[1]))) @ found[0]
    bits = (np.frombuffer(rng.bytes(len(rows) // 8 + 1), np.uint8) for _ in range(draws))
    return np.asarray([np.unpackbits(b, count=len(rows)).astype(np.float64) @ rows for b in bits])


def _distinct(rows: Rows) -> tuple[Rows, npt.NDArray[np.int64]] | None:
    """The distinct rows and how often each occurs; None where drawing these numbers would not be faster."""
    if len(np.unique(rows[:1000], axis=0)) * FEW > max(len(rows), 1000):
        return None
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    return (distinct, counts) if len(distinct) * FEW <= len(rows) else None


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
    if set(a.units) != set(places) or a.total != b.total or a.rows.shape[1] != b.rows.shape[1] or not a.units:
        only = len(set(a.units) - set(places)), len(set(places) - set(a.units))
        raise DataError(
            f"{a.label}: the runs have other questions ({only[0]} only in the first, {only[1]} only in the second)",
            fix="compare runs over the same questions",
        )
    first, second = a.rows, b.rows[[places[unit] for unit in a.units]]
    of, rng = function_of(a.total), np.random.default_rng(seed)
    found = of(second) - of(first)
    before, after = _drawn([first, second], a.total, draws, rng)
    low, high = np.quantile(after - before, [0.025, 0.975])
    swapped = np.abs(_swapped([(first, second)], a.total, draws, rng)[0])
    extreme = int((swapped >= abs(found) - 1e-12 * max(1.0, np.abs(swapped).max())).sum())
    changed = dict(zip(a.units, (second[:, 0] - first[:, 0]).tolist(), strict=True)) if a.total == "mean" else {}
    return Difference(a.label, of(first), of(second), [float(low), float(high)], (extreme + 1) / (draws + 1), changed)


def _swapped(pairs: Sequence[tuple[Rows, Rows]], name: str, draws: int, rng: np.random.Generator) -> Rows:
    """The difference of each pair [pairs, draws] where units, each with probability 1/2, have exchanged their rows."""
    count = len(pairs[0][0])
    if name == "mean" or name in SUMMED:
        moved = _halves(np.concatenate([b - a for a, b in pairs], axis=1), draws, rng)
        parts = zip(pairs, np.split(moved, len(pairs), axis=1), strict=True)
        return np.asarray(
            [_totals(name, b.sum(axis=0) - m, count) - _totals(name, a.sum(axis=0) + m, count) for (a, b), m in parts]
        )
    of, result = function_of(name), []
    for _ in range(draws):
        swap = rng.random(count)[:, None] < 0.5
        result.append([of(np.where(swap, a, b)) - of(np.where(swap, b, a)) for a, b in pairs])
    return np.asarray(result).T
