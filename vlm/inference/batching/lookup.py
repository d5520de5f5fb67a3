"""Guesses of the next tokens of a greedy answer, from what was read and written: prompt lookup.

Source: speculative decoding with the prompt as its draft. The model checks all guesses in one call and keeps those
that it would have written itself, so that the answer does not change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm.inference.batching.row import Row

LONGEST = 3
"""Tokens at the end of the answer that are looked up, if they occurred before; else fewer."""
WINDOW = 4096
"""Latest tokens among which they are looked up."""


def guess(row: Row, count: int) -> list[int]:
    """At most ``count`` tokens that followed, the last time, what the answer ends with; none where rules apply."""
    options = row.generation
    ruled = options.do_sample or options.repetition_penalty != 1 or options.no_repeat_ngram_size
    if not count or ruled or row.asking.constraint is not None or len(row.answer.ids) < options.min_new_tokens:
        return []
    room = options.max_new_tokens - len(row.answer.ids) - 1
    known = (row.ids + row.answer.ids)[-WINDOW:]
    for size in range(min(LONGEST, len(known) - 1), 0, -1):
        end = known[-size:]
        for at in range(len(known) - size - 1, -1, -1):
            if known[at : at + size] == end:
                found = known[at + size : at + size + min(count, room)]
                return [t for i, t in enumerate(found) if min(found[: i + 1]) >= 0]  # no placeholder
    return []
