"""Counts of n-grams of many captions at once, as arrays: what BLEU and CIDEr-D are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
ORDERS = 4


@dataclass(frozen=True)
class Counts:
    """How often each n-gram of one order occurs in each caption; one entry per pair, sorted by caption, then n-gram.

    Attributes:
        caption: number of the caption.
        gram: number of the n-gram, the same in all captions.
        count: occurrences.
        kinds: number of different n-grams in all captions.
    """

    caption: Ints
    gram: Ints
    count: Ints
    kinds: int


def lengths(captions: Sequence[Sequence[str]]) -> Ints:
    """The number of tokens of each caption."""
    return np.fromiter((len(caption) for caption in captions), np.int64, len(captions))


def counts(captions: Sequence[Sequence[str]], orders: int = ORDERS) -> list[Counts]:
    """The n-grams of every caption, for n = 1 .. ``orders``."""
    numbers: dict[str, int] = {}
    size = lengths(captions)
    words = np.fromiter(
        (numbers.setdefault(token, len(numbers)) for caption in captions for token in caption),
        np.int64,
        int(size.sum()),
    )
    owner = np.repeat(np.arange(len(captions)), size)
    place = np.arange(len(words)) - np.repeat(np.cumsum(size) - size, size)
    left = size[owner] - place  # tokens from here to the end of the caption
    gram, kinds = words, len(numbers)
    result = [_counted(owner, gram, kinds)]
    for order in range(2, orders + 1):
        starts = np.flatnonzero(left >= order)
        longer = np.zeros(len(words), np.int64)
        pairs = gram[starts] * max(len(numbers), 1) + words[starts + order - 1]
        distinct, longer[starts] = np.unique(pairs, return_inverse=True)
        gram, kinds = longer, len(distinct)
        result.append(_counted(owner[starts], gram[starts], kinds))
    return result


def _counted(owner: Ints, gram: Ints, kinds: int) -> Counts:
    keys, count = np.unique(owner * max(kinds, 1) + gram, return_counts=True)
    caption, gram = np.divmod(keys, max(kinds, 1))
    return Counts(caption, gram, count.astype(np.int64), kinds)


def split(tokens: Sequence[str]) -> list[str]:
    """Tokens with a no-break space in them, as two: the n-gram metrics split at every white space."""
    return " ".join(tokens).split() if any("\u00a0" in token for token in tokens) else list(tokens)


def distinct(keys: Ints) -> Ints:
    """The different values, sorted; faster than ``numpy.unique``, which hashes them."""
    ordered = np.sort(keys)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered
