"""The two packages that read a vocabulary: sentencepiece and tokenizers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm.common.errors import WeightsError
from vlm.common.file_kind import mistaken
from vlm.processors.tokenizer.special_tokens import Special, is_control
from vlm.processors.tokenizer.spelling import spelling_of

_APART = "\uf8ff"
"""A character of the private use area: no vocabulary has it, so that it never joins the text after it."""


class SentencePiece:
    """The vocabulary of a ``tokenizer.model``. Raises WeightsError: not one.

    Attributes:
        size: pieces.
        defaults: role (bos, eos, unk) -> id, where the vocabulary has one.
        lead: ids of the dummy space before a control token at the start.
    """

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
        """Text of ``ids``."""
        return self._sp.decode([i for i in ids if 0 <= i < self.size])

    def id_of(self, piece: str) -> int | None:
        """Id of a piece, or None."""
        result = self._sp.piece_to_id(piece)
        return None if result == self.defaults.get("unk") and piece != self._sp.id_to_piece(result) else result

    def piece(self, index: int) -> str:
        """The piece of an id."""
        return self._sp.id_to_piece(index)

    def bytes_of(self, index: int) -> bytes:
        """What an id adds to a text; empty where decoding writes something else for it."""
        sp = self._sp
        if sp.is_byte(index):
            return bytes([int(sp.id_to_piece(index)[3:5], 16)])
        if sp.is_control(index) or sp.is_unknown(index) or sp.is_unused(index):
            return b""
        text: str = sp.id_to_piece(index)
        return text.replace("\u2581", " ").encode()

    def entries(self) -> list[tuple[str, float, int]]:
        """Piece, score and kind of every id, see ``Tokenizer.sentencepieces``."""
        sp, ids = self._sp, range(self.size)
        tests = (sp.is_unknown, sp.is_control, sp.is_unused, sp.is_byte)
        kinds = [next((kind for kind, test in zip((2, 3, 5, 6), tests) if test(i)), 1) for i in ids]
        return [(sp.id_to_piece(i), sp.get_score(i), kind) for i, kind in zip(ids, kinds)]


UNNAMED = Exception
"""What the package tokenizers raises: it has no class of its own for faults of a file."""


class Fast:
    """The vocabulary of a ``tokenizer.json``. Raises WeightsError: not one.

    Attributes:
        size: ids.
        defaults, lead: as :class:`SentencePiece`; empty.
    """

    def __init__(self, text: str, file: Path | str = "tokenizer.json") -> None:
        from tokenizers import Tokenizer as Rust

        reason = ""
        try:
            whole = isinstance(json.loads(text), dict) and '"model"' in text
            if whole:
                self._tok = Rust.from_str(text)
                self._tok.encode("a 0 \u4e00")  # a vocabulary without what stands for unknown text ends here
        except (ValueError, RecursionError):
            whole = False
        except UNNAMED as error:
            if type(error) is not UNNAMED:
                raise
            whole, reason = False, f" ({error})"
        if not whole:
            raise WeightsError(f"{file} is not a tokenizers file{reason}", fix="fetch tokenizer.json again")
        self.protect([])
        self.size = self._tok.get_vocab_size(with_added_tokens=True)
        self.defaults: dict[str, int] = {}
        self._spelling: Callable[[str], bytes] | None = None

    def __reduce__(self) -> tuple[Any, tuple[str, list[str]]]:
        return _restored, (self._tok.to_str(), self._names)

    def protect(self, names: Sequence[str]) -> list[str]:
        """Never read special tokens, ``names`` and other control tokens in plain text."""
        self._names, self.lead = list(names), list[int]()
        self._plain: Any = None
        return []

    def _without_special(self) -> Any:
        """A tokenizer that reads no control token; made when it is first needed."""
        if self._plain is None:
            tree = json.loads(self._tok.to_str())
            for token in tree.get("added_tokens") or []:
                token["special"] |= token["content"] in self._names or is_control(token["content"])
            self._plain = type(self._tok).from_str(json.dumps(tree))
            self._plain.encode_special_tokens = True
        return self._plain

    def add(self, tokens: dict[str, Special]) -> None:
        """Add special strings that the file does not have."""
        from tokenizers import AddedToken

        new = [AddedToken(t, lstrip=s.lstrip, rstrip=s.rstrip, normalized=False) for t, s in tokens.items()]
        self._tok.add_special_tokens(new)
        self.protect(self._names)
        self.size = self._tok.get_vocab_size(with_added_tokens=True)

    def own(self) -> dict[str, Special]:
        """Special tokens of the file."""
        added = self._tok.get_added_tokens_decoder()
        return {t.content: Special(i, t.lstrip, t.rstrip, t.special) for i, t in added.items()}

    def encode(self, text: str, plain: bool, follows: bool = False) -> list[int]:
        """Ids of a text; ``plain``: control tokens are ordinary text in it."""
        return (self._without_special() if plain else self._tok).encode(text, add_special_tokens=False).ids

    def limit(self, tokens: int, side: str) -> None:
        """Cut longer texts to ``tokens`` on one side, what :meth:`encode_framed` adds included."""
        self._tok.no_padding()
        self._tok.enable_truncation(tokens, direction=side)
        self.protect(self._names)

    def encode_framed(self, text: str) -> list[int]:
        """Ids of ``text``, in which nothing is special, between the special tokens that the file adds."""
        return self._without_special().encode(text).ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """For each id of ``text``, its characters ``[start, end)``."""
        spans: list[tuple[int, int]] = self._tok.encode(text, add_special_tokens=False).offsets
        return spans

    def decode(self, ids: list[int], skip_special: bool) -> str:
        """Text of ``ids``."""
        return self._tok.decode(ids, skip_special_tokens=skip_special)

    def id_of(self, piece: str) -> int | None:
        """Id of a piece, or None."""
        return self._tok.token_to_id(piece)

    def piece(self, index: int) -> str:
        """The piece of an id."""
        return self._tok.id_to_token(index) or ""

    def bytes_of(self, index: int) -> bytes:
        """What an id adds to a text; empty where it has no piece."""
        if self._spelling is None:
            self._spelling = spelling_of(json.loads(self._tok.to_str()).get("decoder"))
        return self._spelling(self.piece(index))


def _restored(text: str, names: list[str]) -> Fast:
    """A pickled backend."""
    result = Fast(text)
    result.protect(names)
    return result


def any_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of the texts, the longest first; None without texts."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None
