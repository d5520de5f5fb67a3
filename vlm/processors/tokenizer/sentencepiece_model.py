"""A sentencepiece vocabulary: text without special strings <-> ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vlm.common.errors import WeightsError
from vlm.common.file_kind import mistaken
from vlm.processors.tokenizer.special_tokens import is_control

_APART = "\uf8ff"
"""A character of the private use area: no vocabulary has it, so that it never joins the text after it."""


class SentencePieceModel:
    """The content of ``tokenizer.model``. Raises WeightsError: it is something else."""

    def __init__(self, file: Path) -> None:
        import sentencepiece

        try:
            self._sp = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
        except RuntimeError as error:
            fault = mistaken(file) or f"{file} is not a sentencepiece model"
            raise WeightsError(fault, fix="fetch tokenizer.model again") from error
        self.size = self._sp.vocab_size()
        own = {"bos": self._sp.bos_id(), "eos": self._sp.eos_id(), "unk": self._sp.unk_id()}
        self.defaults = {role: i for role, i in own.items() if i >= 0}

        self._apart = len(self._sp.encode(_APART))
        self._guarded: re.Pattern[str] | None = None
        self.lead: list[int] = []  # the dummy space before a control token at the start

    def protect(self, names: Sequence[str]) -> list[str]:
        """Never read ``names`` as pieces, nor other control tokens of the vocabulary; these are returned."""
        pieces = self._sp.id_to_piece(list(range(self.size)))
        own = [p for p in pieces if is_control(p) and self.id_of(p) in self._sp.encode(p)]
        names = [n for n in names if self.id_of(n) in self._sp.encode(n)]
        self._guarded = any_of([*own, *names])
        self.lead = self._sp.encode(own[0])[:-1] if own else []
        return own

    def encode(self, text: str, plain: bool, follows: bool = False) -> list[int]:
        """Ids of a chunk in which nothing is special; ``follows``: without a dummy space before it."""
        cuts = [m.start() + 1 for m in self._guarded.finditer(text)] if self._guarded else []
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, None])]
        return [i for k, part in enumerate(parts) for i in self._ids(part, follows or k > 0)]

    def _ids(self, text: str, follows: bool) -> list[int]:
        return self._sp.encode(_APART + text)[self._apart :] if follows else self._sp.encode(text)

    def decode(self, ids: list[int], skip_special: bool) -> str:
        """Text of ids; those that are not pieces are dropped."""
        return self._sp.decode([i for i in ids if 0 <= i < self.size])

    def id_of(self, piece: str) -> int | None:
        """Id of a whole piece, or None."""
        result = self._sp.piece_to_id(piece)
        return None if result == self.defaults.get("unk") and piece != self._sp.id_to_piece(result) else result

    def piece(self, index: int) -> str:
        """The piece of an id."""
        return self._sp.id_to_piece(index)

    def entries(self) -> list[tuple[str, float, int]]:
        """See ``Tokenizer.sentencepieces``."""
        sp, ids = self._sp, range(self.size)
        tests = (sp.is_unknown, sp.is_control, sp.is_unused, sp.is_byte)
        kinds = [next((kind for kind, test in zip((2, 3, 5, 6), tests) if test(i)), 1) for i in ids]
        return [(sp.id_to_piece(i), sp.get_score(i), kind) for i, kind in zip(ids, kinds)]


def any_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of the texts, the longest first; None without texts."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None
