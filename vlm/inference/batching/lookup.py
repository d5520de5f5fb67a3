"""Guesses of the next tokens of a greedy answer, from what was read and written: prompt lookup.

Source: speculative decoding with the prompt as its draft. The model checks all guesses in one call and keeps those
that it would have written itself, so that the answer does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm.inference.batching.row import Row

LONGEST = 3
"""Tokens at the end of the answer that are looked up, if they occurred before; else fewer."""


class Index:
    """Where each run of tokens was last followed by something; it grows with the answer."""

    def __init__(self) -> None:
        self._known: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def update(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Take note of what is new; both only grow at their ends."""
        first = len(self._known)
        self._known += prompt if not first else ()
        self._known += answer[len(self._known) - len(prompt) :]
        for at in range(first, len(self._known)):
            for size in range(1, min(LONGEST, at) + 1):  # what was there before this token
                self._after[tuple(self._known[at - size : at])] = at

    def following(self, count: int) -> list[int]:
        """At most ``count`` tokens that followed, the last time, what is at the end."""
        for size in range(min(LONGEST, len(self._known)), 0, -1):
            at = self._after.get(tuple(self._known[-size:]))
            if at is not None:
                return self._known[at : at + count]
        return []


def guess(row: Row, count: int) -> list[int]:
    """At most ``count`` tokens that may come next in an answer; none where rules apply."""
    options = row.generation
    ruled = options.do_sample or options.repetition_penalty != 1 or options.no_repeat_ngram_size
    if not count or ruled or row.asking.constraint is not None or len(row.answer.ids) < options.min_new_tokens:
        return []
    row.index = row.index or Index()
    row.index.update(row.ids, row.answer.ids)
    room = options.max_new_tokens - len(row.answer.ids) - 1
    found = row.index.following(min(count, room))
    return list(takewhile(lambda token: token >= 0, found))  # up to the place of a medium
