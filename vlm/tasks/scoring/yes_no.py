"""Numbers of questions with yes or no as the answer: F1 over sets of questions, MME's score, AUROC."""

from __future__ import annotations

import numpy as np

from vlm.tasks.scoring.statistics import Rows, total


@total("f1_of_sets")
def f1_of_sets(rows: Rows) -> float:
    """The mean over sets of F1; columns: true positives, false positives, false negatives, number of the set.

    F1 comes from precision and recall, in this order, so that the last digit is the scripts' own.
    """
    hit, false, missed = _sums(rows)
    precision, recall = _ratio(hit, hit + false), _ratio(hit, hit + missed)
    return float(_ratio(2 * precision * recall, precision + recall).mean())


@total("ratio_of_sets")
def ratio_of_sets(rows: Rows) -> float:
    """The mean over sets of a ratio; columns: above, below, number of the set. A set with nothing below counts 0."""
    return float(_ratio(*_sums(rows)).mean())


@total("mme")
def mme(rows: Rows) -> float:
    """The sum over categories of 100 times (accuracy + accuracy+), a unit being an image.

    Columns: right answers, answers, whether all are right, whether all were given, number of the category.
    """
    right, answers, both, images = _sums(rows)
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


def _sums(rows: Rows) -> Rows:
    """``[columns, sets]``: the sums of all columns but the last, which numbers the sets; only sets that occur."""
    sets = rows[:, -1].astype(np.intp)
    present = np.bincount(sets) > 0
    return np.stack([np.bincount(sets, weights=column)[present] for column in rows[:, :-1].T])


def _ratio(above: Rows, below: Rows) -> Rows:
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
