"""BLEU from rows of counts, one per image: any sum of rows makes a number."""

from __future__ import annotations

import math

from vlm.tasks.scoring.statistics import Rows, total

COLUMNS = (
    "tokens", "closest", "grams_1", "grams_2", "grams_3", "grams_4", "right_1", "right_2", "right_3", "right_4",
)  # fmt: skip
"""Tokens of the candidate, of the closest reference; n-grams of the candidate, and those of them in a reference."""
SMALL, TINY = 1e-9, 1e-15


def bleu(rows: Rows, order: int) -> float:
    """BLEU up to n-grams of ``order``, of all rows together; smoothed as in ``pycocoevalcap``."""
    tokens, closest, *grams = (float(x) for x in rows.sum(axis=0))
    product = 1.0
    for n in range(order):
        product *= (grams[4 + n] + TINY) / (grams[n] + SMALL)
    ratio = (tokens + TINY) / (closest + SMALL)
    return product ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


@total("bleu_1", summed=True)
def bleu_1(rows: Rows) -> float:
    """BLEU-1."""
    return bleu(rows, 1)


@total("bleu_2", summed=True)
def bleu_2(rows: Rows) -> float:
    """BLEU-2."""
    return bleu(rows, 2)


@total("bleu_3", summed=True)
def bleu_3(rows: Rows) -> float:
    """BLEU-3."""
    return bleu(rows, 3)


@total("bleu_4", summed=True)
def bleu_4(rows: Rows) -> float:
    """BLEU-4."""
    return bleu(rows, 4)
