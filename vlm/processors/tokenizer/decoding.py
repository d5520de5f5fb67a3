"""Ids that arrive one by one, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm.processors.tokenizer.tokenizer import Tokenizer


MOST = 64
"""Ids that are decoded again with each new one, at most as a rule."""
KEPT = 16
"""Ids of these that are kept when there are more; a character or a word has fewer."""


class StreamDecoder:
    """Decodes ids as they arrive; the joined pieces equal ``decode`` of all ids.

    Incomplete characters are held back.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the latest ones
        self._sent = 0  # characters of their text

    def push(self, ids: int | list[int]) -> str:
        """New complete characters after ``ids``; may be empty."""
        self._ids += [ids] if isinstance(ids, int) else ids
        text = self._tokenizer.decode(self._ids)
        new = self._emit(text.rstrip("\ufffd"))
        if len(self._ids) > MOST and self._sent == len(text):
            self._shorten(text)
        return new

    def flush(self) -> str:
        """The text held back so far; call once, at the end."""
        return self._emit(self._tokenizer.decode(self._ids))

    def _emit(self, text: str) -> str:
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new

    def _shorten(self, text: str) -> None:
        """Keep the last ids alone, if their text is the end of the text; so an answer of any length costs as much."""
        last = self._ids[-KEPT:]
        end = self._tokenizer.decode(last)
        if end and text.endswith(end):
            self._ids, self._sent = last, len(end)
