"""Numbers of a study: means over seeds with intervals, paired differences, permutation tests, Holm's adjustment.

A number of a combination is measured with some seeds on some questions, and would come out otherwise with others of
either. Both are counted: the variance of a mean is that between seeds divided by the number of seeds, plus that between
questions divided by the number of questions, and the interval is Student's, with the degrees of freedom of such a sum
(Welch and Satterthwaite). What depends on seed and question at once is in both terms, so that intervals are rather too
wide than too narrow.

Three seeds say little about how much seeds differ. So the variance between seeds is pooled over all combinations, as in
an analysis of variance; where a combination's own is larger, it counts, so that one that trains unsteadily is not
covered by those that train steadily. Differences are taken seed by seed, and what a seed does to all combinations alike
drops out of their variance (seeds are blocks). Where every combination has a single seed, only questions count, which
says nothing about another seed.

The permutation test exchanges questions, each with the answers of all seeds, and asks whether these trained models
differ. That is soon true: two models of one recipe with other seeds differ, too. So what is adjusted for the number of
comparisons is the larger one of its p and that of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from vlm.tasks.scoring.statistics import Metric, aligned, exchanged, resampled

Values = npt.NDArray[np.float64]
Part = tuple[float, float]
"""A variance, and its degrees of freedom; 0 of these: it is not known."""
UNKNOWN: Part = (0.0, 0.0)

LEVEL = 0.95
"""Coverage of intervals."""
RESAMPLES = 400
"""Draws for the variance between questions of a number that is not a mean."""
PERMUTATIONS = 9999
"""Draws of a permutation test that is not exact."""
COUNTED = 5_000_000
"""Additions that the exact distribution of a permutation test may take."""
LISTED = 12
"""Values up to which all exchanges are listed one by one."""
SCALES = (1, 2, 3, 6, 10, 30, 60, 100)
"""Values that are whole numbers when multiplied by one of these have an exact distribution."""
NEAR = 1e-9
MOST_FREE = 1e4
"""Degrees of freedom with which Student's distribution is as good as normal."""


@dataclass(frozen=True)
class Numbers:
    """One number of a combination, by seed.

    Attributes:
        values: seed -> number.
        metrics: seed -> the metric that it comes from; empty for a loss, which has no questions.
        better: which numbers are: ``higher``, ``lower``, or none.
        unit: ``share`` of 1 or another ``number``.
    """

    values: Mapping[int, float]
    metrics: Mapping[int, Metric] = field(default_factory=dict)
    better: str = "higher"
    unit: str = "share"

    @classmethod
    def of(cls, metrics: Mapping[int, Metric]) -> Numbers:
        """Of the metrics of some seeds, over the questions that all of them have."""
        same = dict(zip(metrics, aligned(list(metrics.values())), strict=True)) if metrics else {}
        known = {seed: metric for seed, metric in same.items() if len(metric.units)}
        first = next(iter(metrics.values()), None)
        better, unit = (first.better, first.unit) if first is not None else ("higher", "share")
        return cls({seed: m.value() or 0.0 for seed, m in known.items()}, known, better, unit)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        value: the mean.
        bounds: of its 95 % interval; None: nothing is known about it (a loss with one seed).
        seeds, questions: how many; no questions: a loss.
        spread: standard deviation over seeds; None with one seed.
    """

    value: float
    bounds: tuple[float, float] | None
    seeds: int
    questions: int = 0
    spread: float | None = None

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.bounds is None else (self.bounds[1] - self.bounds[0]) / 2


@dataclass(frozen=True)
class Change:
    """A paired difference to the reference: over the seeds and questions that both have.

    Attributes:
        found: mean, interval and counts of the difference.
        p: of the permutation test, two-sided: do these trained models differ?
        exact: whether all permutations were counted, and not a sample.
        least: the smallest p that is possible with so few values.
        seeds_p: of the interval, two-sided: would other seeds and questions differ? None: nothing is known about seeds.
        adjusted: :attr:`joint` by Holm for the number of comparisons, see :func:`adjusted`.
    """

    found: Estimate
    p: float
    exact: bool
    least: float
    seeds_p: float | None = None
    adjusted: float = 1.0

    @property
    def joint(self) -> float:
        """The p that is adjusted: the larger one; of losses, which have no questions to exchange, the interval's."""
        if self.seeds_p is None:
            return self.p
        return max(self.p, self.seeds_p) if self.found.questions else self.seeds_p

    def shown(self, level: float = 1 - LEVEL) -> bool:
        """Whether a difference is shown; never where nothing is known about another seed."""
        return self.seeds_p is not None and self.found.value != 0 and self.adjusted <= level


def adjusted(changes: Sequence[Change]) -> list[Change]:
    """The comparisons of one table, with p adjusted for their number."""
    values = holm([change.joint for change in changes])
    return [replace(change, adjusted=p) for change, p in zip(changes, values, strict=True)]


def estimate(numbers: Numbers, pooled: Part = UNKNOWN) -> Estimate | None:
    """The mean over seeds with its interval; None: there is no seed.

    Args:
        numbers: of a combination.
        pooled: of one seed, over all combinations: :func:`pooled_means`.
    """
    values = np.asarray(list(numbers.values.values()))
    if not len(values):
        return None
    metrics = list(numbers.metrics.values())
    parts = [between_seeds(values, pooled)]
    parts += [_between_questions(metrics)] if metrics else []
    value = float(values.mean())
    bounds = interval(value, parts)
    if bounds is not None and numbers.unit == "share":
        bounds = max(bounds[0], min(value, 0.0)), min(bounds[1], max(value, 1.0))
    return Estimate(value, bounds, len(values), len(metrics[0].units) if metrics else 0, _spread(values))


def difference(numbers: Numbers, reference: Numbers, pooled: Part = UNKNOWN) -> Change | None:
    """``numbers`` less ``reference``, with a test; None: they have no seed, or no question, in common.

    Args:
        numbers, reference: of two combinations.
        pooled: of the difference with one seed, over all combinations: :func:`pooled_differences`.
    """
    pairs = _paired(numbers, reference)
    if pairs is None:
        return None
    found, parts = _gain(pairs, pooled)
    test = _exchanges(pairs.mine, pairs.theirs) if pairs.mine else sign_flips(pairs.values)
    return Change(found, *test, seeds_p=two_sided(found.value, parts) if parts[0][1] else None)


def gain(numbers: Numbers, reference: Numbers, pooled: Part = UNKNOWN) -> Estimate | None:
    """As :func:`difference`, without a test."""
    pairs = _paired(numbers, reference)
    return None if pairs is None else _gain(pairs, pooled)[0]


@dataclass(frozen=True)
class _Pairs:
    """Shared seeds: their differences, and both metrics over the questions that all of them have."""

    values: Values
    mine: Sequence[Metric] = ()
    theirs: Sequence[Metric] = ()


def _paired(numbers: Numbers, reference: Numbers) -> _Pairs | None:
    seeds = [seed for seed in numbers.values if seed in reference.values]
    if not seeds:
        return None
    if not numbers.metrics or not reference.metrics:
        return _Pairs(np.asarray([numbers.values[s] - reference.values[s] for s in seeds]))
    same = aligned([numbers.metrics[s] for s in seeds] + [reference.metrics[s] for s in seeds])
    mine, theirs = same[: len(seeds)], same[len(seeds) :]
    if not len(same[0].units):
        return None
    values = [(a.value() or 0.0) - (b.value() or 0.0) for a, b in zip(mine, theirs, strict=True)]
    return _Pairs(np.asarray(values), mine, theirs)


def _gain(pairs: _Pairs, pooled: Part) -> tuple[Estimate, list[Part]]:
    value = float(pairs.values.mean())
    parts = [between_seeds(pairs.values, pooled)]
    parts += [_between_questions(pairs.mine, pairs.theirs)] if pairs.mine else []
    questions = len(pairs.mine[0].units) if pairs.mine else 0
    return Estimate(value, interval(value, parts), len(pairs.values), questions, _spread(pairs.values)), parts


def _exchanges(mine: Sequence[Metric], theirs: Sequence[Metric]) -> tuple[float, bool, float]:
    """p, whether it is exact, and the smallest possible p, of exchanging questions, each with all of its seeds."""
    if mine[0].total == "mean":
        return sign_flips(np.sum([a.rows[:, 0] - b.rows[:, 0] for a, b in zip(mine, theirs, strict=True)], axis=0))
    found = np.mean([(a.value() or 0.0) - (b.value() or 0.0) for a, b in zip(mine, theirs, strict=True)])
    drawn = np.abs(exchanged(theirs, mine, PERMUTATIONS))
    extreme = int((drawn >= abs(found) - NEAR).sum())
    least = 1 / (PERMUTATIONS + 1)
    return (extreme + 1) / (PERMUTATIONS + 1), False, least


def between_seeds(values: Values, pooled: Part = UNKNOWN) -> Part:
    """Variance of the mean over seeds, and its degrees of freedom (0: nothing is known about it)."""
    count = len(values)
    own, free = (float(values.var(ddof=1)), count - 1.0) if count > 1 else UNKNOWN
    return (max(own, pooled[0]) / count, pooled[1]) if pooled[1] > 0 else (own / count, free)


def pooled_means(numbers: Sequence[Numbers]) -> Part:
    """Variance of the number of one seed around the mean of its combination, and its degrees of freedom."""
    tables = [np.asarray(list(n.values.values())) for n in numbers]
    free = float(sum(max(len(values) - 1, 0) for values in tables))
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in tables if len(values))
    return (squares / free, free) if free else UNKNOWN


def pooled_differences(numbers: Sequence[Numbers]) -> Part:
    """Variance of the difference of two combinations with one seed, and its degrees of freedom.

    It is twice the residual of a model with one term for the combination and one for the seed, by least squares.
    """
    found = [(k, seed, value) for k, n in enumerate(numbers) for seed, value in n.values.items()]
    seeds = sorted({seed for _, seed, _ in found})
    design = np.zeros((len(found), len(numbers) + len(seeds)))
    for row, (k, seed, _) in enumerate(found):
        design[row, k] = design[row, len(numbers) + seeds.index(seed)] = 1.0
    free = float(len(found) - (np.linalg.matrix_rank(design) if found else 0))
    if not free:
        return UNKNOWN
    values = np.asarray([value for _, _, value in found])
    residual = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return 2 * float((residual**2).sum()) / free, free


def _between_questions(runs: Sequence[Metric], less: Sequence[Metric] = ()) -> Part:
    """Variance over questions of the mean of runs, or of its difference to that of others, and degrees of freedom."""
    first, count = runs[0], len(runs[0].units)
    if first.total != "mean":
        drawn = resampled([*runs, *less], RESAMPLES)
        means = drawn[: len(runs)].mean(axis=0) - (drawn[len(runs) :].mean(axis=0) if less else 0.0)
        return float(means.var(ddof=1)), max(count - 1.0, 1.0)
    rows = np.mean([run.rows[:, 0] for run in runs], axis=0)
    rows = rows - np.mean([run.rows[:, 0] for run in less], axis=0) if less else rows
    return question_variance(rows, first.unit == "share", paired=bool(less))


def question_variance(values: Values, share: bool, paired: bool = False) -> Part:
    """Variance of a mean over questions, and its degrees of freedom.

    Four made-up questions are added where values are shares, two of them right; two where they are differences of
    shares, of which each wins half a question. So there is an interval where all answers are right (Agresti and Coull;
    Agresti and Min).

    Args:
        values: one per question.
        share: whether they are, of 1.
        paired: whether they are differences.
    """
    count = len(values)
    if not share:
        return (float(values.var(ddof=1)) / count if count > 1 else 0.0), max(count - 1.0, 1.0)
    if paired:
        mean = values.sum() / (count + 2)
        squares = float((values**2).sum()) + 1.0 - (count + 2) * mean**2
        return squares / (count + 2) ** 2, float(count)
    added = np.concatenate([values, [0.0, 0.0, 1.0, 1.0]])
    return float(added.var()) / len(added), float(count)


def interval(value: float, parts: Sequence[Part]) -> tuple[float, float] | None:
    """Bounds around ``value``; None where no part has degrees of freedom.

    Args:
        value: the centre.
        parts: variances that add up, with the degrees of freedom of each; a part with 0 is not known.
    """
    if (total := _total(parts)) is None:
        return None
    reach = student(total[1]) * math.sqrt(total[0])
    return value - reach, value + reach


def two_sided(value: float, parts: Sequence[Part]) -> float | None:
    """The p for which the interval at 1 - p ends at 0; None where there is no interval."""
    if (total := _total(parts)) is None:
        return None
    if not total[0] or not value:
        return 0.0 if value else 1.0
    free = min(max(total[1], 1.0), MOST_FREE)
    angles, below = _angles(free)
    angle = math.atan(abs(value) / math.sqrt(total[0] * free))
    return float(np.interp(angle, angles, 1 - below))


def _total(parts: Sequence[Part]) -> Part | None:
    """The sum of variances and its degrees of freedom."""
    known = [(variance, free) for variance, free in parts if free > 0]
    total = sum(variance for variance, _ in known)
    if not known or total <= 0:
        return (0.0, 1.0) if known else None
    return total, total**2 / sum(variance**2 / free for variance, free in known)


def student(free: float, level: float = LEVEL) -> float:
    """The quantile of Student's t distribution that ``level`` of it is within, on both sides of 0.

    Args:
        free: degrees of freedom, at least 1; need not be whole.
        level: the share.
    """
    free = min(max(free, 1.0), MOST_FREE)
    angles, below = _angles(free)
    return math.sqrt(free) * math.tan(float(np.interp(level, below, angles)))


def _angles(free: float) -> tuple[Values, Values]:
    """Angles, with ``t = sqrt(free) * tan(angle)``, and the share of the distribution within each."""
    angles = np.linspace(0.0, math.pi / 2, 8001)
    density = np.cos(angles) ** (free - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return angles, below / below[-1]


def sign_flips(values: Values) -> tuple[float, bool, float]:
    """How often values whose signs are drawn by chance have as large a sum, two-sided.

    Args:
        values: differences, one per question (or, of a loss, per seed).

    Returns:
        p, whether it is exact, and the smallest p that is possible.
    """
    moved = np.abs(values[np.abs(values) > NEAR])
    count, found = len(moved), abs(float(values.sum()))
    if not count:
        return 1.0, True, 1.0
    least = 2.0 ** (1 - count) if count < 1000 else 0.0
    for scale in SCALES:
        whole = np.rint(moved * scale)
        if np.abs(whole - moved * scale).max() < 1e-6 and count * 2 * whole.sum() <= COUNTED:
            return _counted(whole.astype(np.int64), round(found * scale)), True, least
    if count <= LISTED:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ moved) >= found - NEAR).mean()), True, least
    rng, extreme = np.random.default_rng(0), 0
    for _ in range(PERMUTATIONS):
        bits = np.unpackbits(np.frombuffer(rng.bytes(count // 8 + 1), np.uint8), count=count)
        extreme += int(abs(float(moved.sum() - 2 * (bits @ moved))) >= found - NEAR)
    return (extreme + 1) / (PERMUTATIONS + 1), False, 1 / (PERMUTATIONS + 1)


def _counted(moved: npt.NDArray[np.int64], found: int) -> float:
    """The share of all signs of whole numbers for which the sum is at least as large."""
    chance = np.ones(1)  # of each sum of those that have a plus
    for size in moved:
        longer = np.zeros(len(chance) + int(size))
        longer[: len(chance)] += chance / 2
        longer[int(size) :] += chance / 2
        chance = longer
    sums = 2 * np.arange(len(chance)) - int(moved.sum())
    return min(1.0, float(chance[np.abs(sums) >= found].sum()))


def holm(values: Sequence[float]) -> list[float]:
    """Each p adjusted for the number of them, so that all that stay small hold at once (Holm's step-down rule)."""
    order, result, most = sorted(range(len(values)), key=lambda k: values[k]), [1.0] * len(values), 0.0
    for place, k in enumerate(order):
        most = max(most, min(1.0, (len(values) - place) * values[k]))
        result[k] = most
    return result


def _spread(values: Values) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None
