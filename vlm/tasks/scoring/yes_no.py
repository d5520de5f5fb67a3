"""Numbers of questions with yes or no as the answer: F1 over sets of questions, MME's score, AUROC."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlm.tasks.scoring.statistics import Rows, total


def by_set(sets: npt.NDArray[np.intp], *columns: npt.ArrayLike) -> Rows:
    """``[n, sets * (columns + 1)]``: the columns of each unit at the place of its set, and a 1; zero elsewhere.

    So the sums of all units say everything about each set, which makes a total of sets one of sums.
    """
    values = np.stack([*map(np.asarray, columns), np.ones(len(sets))], axis=1).astype(np.float64)
    rows = np.zeros((len(sets), int(sets.max(initial=0)) + 1, values.shape[1]))
    rows[np.arange(len(sets)), sets] = values
    return rows.reshape(len(sets), -1)


@total("f1_of_sets", summed=True)
def f1_of_sets(rows: Rows) -> float:
    """The mean over sets of F1; columns by set: true positives, false positives, false negatives.

    F1 comes from precision and recall, in this order, so that the last digit is the scripts' own.
    """
    hit, false, missed = _sums(rows, 3)
    precision, recall = _ratio(hit, hit + false), _ratio(hit, hit + missed)
    return _mean(_ratio(2 * precision * recall, precision + recall))


@total("ratio_of_sets", summed=True)
def ratio_of_sets(rows: Rows) -> float:
    """The mean over sets of a ratio; columns by set: above, below. A set with nothing below counts 0."""
    return _mean(_ratio(*_sums(rows, 2)))


@total("mme", summed=True)
def mme(rows: Rows) -> float:
    """The sum over categories of 100 times (accuracy + accuracy+), a unit being an image.

    Columns by category: right answers, answers, whether all are right, whether all were given.
    """
    right, answers, both, images = _sums(rows, 4)
    return float((_ratio(right, answers) * 100 + _ratio(both, images) * 100).sum())


@total("auroc")
def auroc(rows: Rows) -> float:
    """The area under the ROC curve: the share of pairs of a true and a false unit in which the true one is higher.

    Columns: value, whether it is true. Equal values count a half; 0.5 where all units are true, or all false.
    """
    values, place = np.unique(rows[:, 0], return_inverse=True)
    true = np.bincount(place, weights=rows[:, 1], minlength=len(values))
    false = np.bincount(place, minlength=len(values)) - true
    pairs = true.sum() * false.sum()
    return float((true * (false.cumsum() - false / 2)).sum() / pairs) if pairs else 0.5


def _sums(rows: Rows, columns: int) -> Rows:
    """``[columns, sets]``: the sums of each column of :func:`by_set`; only sets that occur."""
    sums = rows.sum(axis=0).reshape(-1, columns + 1)
    return sums[sums[:, -1] > 0, :-1].T


def _mean(values: Rows) -> float:
    """Over the sets that occur; 0 where none does."""
    return float(values.mean()) if len(values) else 0.0


def _ratio(above: Rows, below: Rows) -> Rows:
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
