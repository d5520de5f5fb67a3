"""Metrics of captions over token lists: BLEU, CIDEr-D and ROUGE-L, equal to ``pycocoevalcap``.

SPICE is left out: it parses sentences to scene graphs with a parser that exists in Java only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlm.tasks.scoring.bleu import COLUMNS
from vlm.tasks.scoring.ngrams import ORDERS, Counts, counts, distinct, lengths, split
from vlm.tasks.scoring.statistics import Rows

Tokens = Sequence[str]
SIGMA = 6.0
BETA = 1.2


class Compared:
    """Candidates, one per image, with the references of each image; n-grams are counted once for all metrics."""

    def __init__(self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
        """Count; every image has a reference."""
        self.candidates, self.references = candidates, references
        self.images = len(candidates)
        flat = [split(tokens) for tokens in (*candidates, *(r for of in references for r in of))]
        many = np.fromiter((len(of) for of in references), np.int64, self.images)
        self.image = np.concatenate([np.arange(self.images), np.repeat(np.arange(self.images), many)])
        self.many = many
        self.size = lengths(flat)
        self.grams = counts(flat, ORDERS)

    def bleu(self) -> Rows:
        """A row per image with the columns of :data:`.bleu.COLUMNS`, for the totals ``bleu_1`` .. ``bleu_4``."""
        rows = np.zeros((self.images, len(COLUMNS)))
        rows[:, 0] = self.size[: self.images]
        rows[:, 1] = self._closest()
        for order, found in enumerate(self.grams, start=1):
            rows[:, 1 + order] = np.maximum(rows[:, 0] - order + 1, 0)
            rows[:, 5 + order] = self._clipped(found)
        return rows

    def _closest(self) -> Rows:
        """Per image the length of the reference whose length is closest to the candidate's; the shorter of two."""
        of, size = self.image[self.images :], self.size[self.images :]
        order = np.lexsort((size, np.abs(size - self.size[of]), of))
        first = np.cumsum(self.many) - self.many
        return size[order][first].astype(np.float64)

    def _clipped(self, found: Counts) -> Rows:
        """Per image how many n-grams of the candidate the references have, each as often as in one of them."""
        key = self.image[found.caption] * found.kinds + found.gram
        ours = found.caption < self.images
        order = np.argsort(key[~ours], kind="stable")
        keys, start = np.unique(key[~ours][order], return_index=True)
        most = np.maximum.reduceat(found.count[~ours][order], start) if len(start) else np.zeros(0, np.int64)
        place, known = _found(keys, key[ours])
        kept = np.minimum(found.count[ours][known], most[place[known]])
        return np.bincount(found.caption[ours][known], kept, self.images).astype(np.float64)

    def cider(self) -> Rows:
        """CIDEr-D of each image; frequencies of n-grams are those of the references of all images."""
        total = np.zeros(len(self.size))
        for found in self.grams:
            total += self._similar(found)
        bigrams = np.maximum(self.size - 1, 0)  # what pycocoevalcap takes for the length
        apart = bigrams - bigrams[self.image]
        total *= np.exp(-(apart**2) / (2 * SIGMA**2))
        refs = slice(self.images, None)
        return 10 / ORDERS * np.bincount(self.image[refs], total[refs], self.images) / self.many

    def _similar(self, found: Counts) -> Rows:
        """Per caption its clipped cosine with the candidate of its image, for one order."""
        image = self.image[found.caption]
        ours = found.caption < self.images
        documents = distinct(image[~ours] * max(found.kinds, 1) + found.gram[~ours])
        frequency = np.bincount(documents % max(found.kinds, 1), minlength=found.kinds)
        rarity = np.log(self.images) - np.log(np.maximum(frequency, 1))
        weight = found.count * rarity[found.gram]
        norm = np.sqrt(np.bincount(found.caption, weight**2, len(self.size)))
        key = image * found.kinds + found.gram
        place, known = _found(key[ours], key[~ours])
        theirs = weight[~ours][known]
        shared = np.minimum(weight[ours][place[known]], theirs) * theirs
        product = np.bincount(found.caption[~ours][known], shared, len(self.size)).astype(np.float64)
        scale = norm * norm[self.image]
        return np.divide(product, scale, out=product, where=scale != 0)

    def rouge(self) -> Rows:
        """ROUGE-L of each image."""
        pairs = zip(self.candidates, self.references, strict=True)
        return np.fromiter((rouge_l(c, refs) for c, refs in pairs), np.float64, self.images)


def _found(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each key its place in sorted ones, and which keys are there at all."""
    place = np.searchsorted(sorted_keys, keys)
    inside = place < len(sorted_keys)
    known = np.zeros(len(keys), bool)
    known[inside] = sorted_keys[place[inside]] == keys[inside]
    return place, known


def rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    """F of the best precision and the best recall of longest common subsequences, recall weighted by 1.2.

    An empty caption counts as one empty token, as in ``pycocoevalcap``.
    """
    own = candidate or ("",)
    places: dict[str, int] = {}
    for place, token in enumerate(own):
        places[token] = places.get(token, 0) | 1 << place
    precision = recall = 0.0
    for reference in references:
        tokens = reference or ("",)
        common = _common(places, len(own), tokens)
        precision, recall = max(precision, common / len(own)), max(recall, common / len(tokens))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(places: dict[str, int], length: int, tokens: Tokens) -> int:
    """Length of the longest common subsequence, a row of the table held in the bits of one integer."""
    full = (1 << length) - 1
    row = full
    for token in tokens:
        matched = row & places.get(token, 0)
        row = (row + matched) | (row - matched)
    return length - (row & full).bit_count()
