"""Scores of single texts that several benchmarks share: contained, nearly equal, nearly the same number."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_NO_MARKS = str.maketrans("", "", string.punctuation)


def bare(text: str) -> str:
    """In lower case and without ASCII punctuation: how lmms-eval's ``exact_match`` compares."""
    return text.lower().translate(_NO_MARKS)


def contains(answer: str, reference: str) -> bool:
    """Whether the reference occurs in the answer, in any case, and not as a part of a longer word or number."""
    wanted = " ".join(reference.split()).casefold()
    before = r"(?<![a-z0-9])" if wanted[:1].isascii() and wanted[:1].isalnum() else ""
    after = r"(?![a-z0-9])" if wanted[-1:].isascii() and wanted[-1:].isalnum() else ""
    pattern = before + re.escape(wanted) + after
    return bool(wanted) and re.search(pattern, " ".join(answer.split()).casefold()) is not None


def edits(a: str, b: str) -> int:
    """The Levenshtein distance: characters to insert, remove or replace."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, sign in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (sign != other))
    return row[-1]


def anls(answer: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one answer (DocVQA, ST-VQA): the best of its references.

    A similarity below ``threshold`` counts 0. Case and runs of white space do not matter.
    """
    best = max((_similarity(answer, reference) for reference in references), default=0.0)
    return best if best >= threshold else 0.0


def _similarity(answer: str, reference: str) -> float:
    length = max(len(reference.upper()), len(answer.upper()))
    distance = edits(" ".join(reference.lower().split()), " ".join(answer.lower().split()))
    return 1.0 - distance / length if length else 1.0


def relaxed(answer: str, reference: str, tolerance: float = 0.05) -> bool:
    """ChartQA's relaxed accuracy: a number within ``tolerance`` of the reference, any other text equal in any case.

    A percentage is the number that it stands for, so ``"50%"`` agrees with ``"0.5"``.
    """
    told, true = _number(answer), _number(reference)
    if told is None or not true:
        return answer.lower() == reference.lower()
    return abs(told - true) / abs(true) <= tolerance


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
