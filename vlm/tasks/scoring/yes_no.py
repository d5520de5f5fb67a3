"""Numbers of questions with yes or no as the answer: F1 over sets of questions, and the score of MME."""

from __future__ import annotations

import numpy as np

from vlm.tasks.scoring.statistics import Rows, total


@total("f1_of_sets")
def f1_of_sets(rows: Rows) -> float:
    """The mean over sets of F1; columns: true positives, false positives, false negatives, number of the set."""
    return float(np.mean([_f1(rows[rows[:, 3] == one]) for one in np.unique(rows[:, 3])]))


def _f1(rows: Rows) -> float:
    """From precision and recall, in this order, so that the last digit is the scripts' own."""
    hit, false, missed = rows[:, :3].sum(axis=0)
    precision, recall = hit / (hit + false) if hit else 0.0, hit / (hit + missed) if hit else 0.0
    return float(2 * precision * recall / (precision + recall)) if hit else 0.0


@total("ratio_of_sets")
def ratio_of_sets(rows: Rows) -> float:
    """The mean over sets of a ratio; columns: above, below, number of the set. A set with nothing below counts 0."""
    found = []
    for one in np.unique(rows[:, 2]):
        above, below = rows[rows[:, 2] == one, :2].sum(axis=0)
        found.append(above / below if below else 0.0)
    return float(np.mean(found))


@total("mme")
def mme(rows: Rows) -> float:
    """The sum over categories of 100 times (accuracy + accuracy+), a unit being an image.

    Columns: right answers, answers, whether all are right, whether all were given, number of the category.
    """
    result = 0.0
    for one in np.unique(rows[:, 4]):
        right, answers, both, images = rows[rows[:, 4] == one, :4].sum(axis=0)
        result += (right / answers if answers else 0.0) * 100 + (both / images if images else 0.0) * 100
    return float(result)
