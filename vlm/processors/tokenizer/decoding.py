"""Ids that arrive one by one, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm.processors.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes ids as they arrive; the joined pieces equal ``decode`` of all ids.

    Incomplete characters are held back.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = 0

    def push(self, ids: int | list[int]) -> str:
        """New complete characters after ``ids``; may be empty."""
        self._ids += [ids] if isinstance(ids, int) else ids
        return self._emit(self._tokenizer.decode(self._ids).rstrip("�"))

    def flush(self) -> str:
        """The text held back so far; call once, at the end."""
        return self._emit(self._tokenizer.decode(self._ids))

    def _emit(self, text: str) -> str:
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new
