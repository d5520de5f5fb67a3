"""Text <-> ids, independent of the installed transformers.

One class with two :mod:`backends <vlm.processors.tokenizer.backends>`, chosen by what the folder contains:

* ``tokenizer.model``: sentencepiece, encoded like the slow LLaMA tokenizer of 2023. The text is
  split at special strings (``<s>``, ``</s>``, ``<unk>`` and the folder's added tokens) and every plain
  chunk is encoded alone, so each chunk begins with its own dummy space; where ``tokenizer_config.json``
  says ``legacy: false``, only the first does.
* ``tokenizer.json`` only: the ``tokenizers`` package.

Special tokens are read by :mod:`vlm.processors.tokenizer.special_tokens`. Those that control a model
(:func:`~vlm.processors.tokenizer.special_tokens.is_control`) never come from a user's words, however the
vocabulary lists them: the words are tokenised as ordinary text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from vlm.common.errors import ConfigError, WeightsError
from vlm.common.file_kind import mistaken
from vlm.common.text import read_text
from vlm.models.llm.gguf_header import is_gguf
from vlm.processors.tokenizer.backends import Fast, SentencePiece, any_of
from vlm.processors.tokenizer.decoding import StreamDecoder
from vlm.processors.tokenizer.special_tokens import Special, SpecialTokens, is_control, read_json, read_special_tokens

Ranges = Sequence[tuple[int, int]]
"""Ranges ``[start, end)`` of a text."""


class Tokenizer:
    """The tokenizer of an LLM, made with :meth:`from_folder`; pickles into loader workers.

    Example: ``Tokenizer.from_folder("/models/llama-2-7b").encode("a red boat")``

    Attributes: ``bos``, ``eos``, ``unk``, ``pad`` ids (``None`` where the vocabulary has none; ``pad``
    always has a value), ``vocab_size`` (ids the tokenizer can produce; the LLM may have more rows), ``folder`` that it
    was read from, and ``controls``, the texts of tokens that are never read in a user's words.
    """

    def __init__(
        self,
        backend: SentencePiece | Fast,
        special: SpecialTokens,
        pad_token: str | None = None,
        legacy: bool = True,
    ) -> None:
        """See :meth:`from_folder`."""
        self.folder: Path | None = None
        self._backend = backend
        self._special = special.by_text
        roles = special.roles
        self.bos, self.eos, self.unk = (roles.get(role) for role in ("bos", "eos", "unk"))
        self._slow, self._legacy = isinstance(backend, SentencePiece), legacy
        for i in (self.bos, self.eos, self.unk) if self._slow else ():
            if i is not None and i < backend.size:
                self._special.setdefault(backend.piece(i), Special(i, lstrip=False, rstrip=False))
        pad = self.id_of(pad_token) if pad_token else None
        self.pad: int = next(i for i in (pad, roles.get("pad"), self.unk, self.eos, 0) if i is not None)
        self.vocab_size = max([backend.size, *(token.id + 1 for token in self._special.values())])
        self._text_of = {token.id: text for text, token in self._special.items()}
        skipped = {i for i in (self.bos, self.eos, self.unk, self.pad, roles.get("pad")) if i is not None}
        self._skipped = skipped | {t.id for t in self._special.values() if t.skip}
        inline = set(backend.protect([t for t, s in self._special.items() if t and s.id in self._skipped]))
        self._inline = tuple(inline - set(self._special))
        self._special |= {t: Special(backend.id_of(t) or 0, False, False, False) for t in self._inline}
        self._name_tokens()

    def _name_tokens(self) -> None:
        self._split = any_of(list(filter(None, self._special)))
        known = [t for t, s in self._special.items() if t and (s.id in self._skipped or is_control(t))]
        self.controls = tuple(known)
        self._refused = self._split if self._slow else any_of(known)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        pad_token: str | None = None,
        *,
        special_tokens: Sequence[str] = (),
        new_pad_token: str = "",
        bos_id: int | None = None,
        eos_id: int | None = None,
        legacy: bool | None = None,
        fast: bool = False,
    ) -> Tokenizer:
        """Read the tokenizer of a Hugging Face LLM folder.

        Args:
            path: folder with ``tokenizer.model`` or ``tokenizer.json``, or a GGUF file.
            pad_token: existing piece or special token used for padding, which answers then lack; if it is empty or the
                vocabulary lacks it: the folder's pad token, else unk, else eos. None: the folder's, else ``$$`` (the
                published choice for LLaMA), else unk, else eos.
            special_tokens: strings made special besides the folder's; new ones get the next ids, in order.
            new_pad_token: added as the pad token if the folder names none; ``pad_token`` is then ignored.
            bos_id, eos_id: ids that override the folder's; their strings then absorb the blanks around them.
            legacy: with sentencepiece, whether text after a special token begins with a dummy space; None: what
                ``tokenizer_config.json`` says, else True.
            fast: read ``tokenizer.json`` where both files are there, as transformers does.

        Raises:
            WeightsError: no folder, no tokenizer in it, or an unreadable file.
        """
        folder = tokenizer_folder(path)
        backend = _backend_of(folder, fast)
        tokens = read_special_tokens(folder, backend.size, backend.defaults, backend.id_of)
        if isinstance(backend, Fast):
            tokens.by_text = backend.own()
        added = [*special_tokens, *([new_pad_token] if new_pad_token and "pad" not in tokens.roles else [])]
        for text in added:
            tokens.add(text, backend.id_of(text), backend.size)
        if added and isinstance(backend, Fast):
            backend.add({text: tokens.by_text[text] for text in added})
            tokens.by_text = backend.own()
        if new_pad_token in added:
            tokens.roles["pad"] = tokens.by_text[new_pad_token].id
        for role, index in (("bos", bos_id), ("eos", eos_id)):
            if index is not None:
                if index >= backend.size and index not in {token.id for token in tokens.by_text.values()}:
                    text = f"{folder}: {role}_id is {index}, but the tokenizer has the ids 0 to {backend.size - 1}"
                    raise ConfigError(text, fix=f"set model.text.{role}_id to one of these, or leave it out")
                tokens.force(role, index, backend.piece(index))
        if legacy is None:
            legacy = read_json(folder / "tokenizer_config.json").get("legacy") is not False
        if pad_token is None:
            pad_token = "" if "pad" in tokens.roles else "$$"
        result = cls(backend, tokens, None if new_pad_token else pad_token, legacy)
        result.folder = folder
        return result

    def with_token(self, text: str) -> Tokenizer:
        """A copy that also reads ``text`` as one special token, which absorbs no blanks."""
        other, token = copy.copy(self), Special(self.vocab_size, lstrip=False, rstrip=False)
        if isinstance(self._backend, Fast):
            other._backend = copy.copy(self._backend)
            other._backend.add({text: token})
            token = other._backend.own()[text]
        other._special, other._skipped = {**self._special, text: token}, {*self._skipped, token.id}
        other._text_of = {**self._text_of, token.id: text}
        other._name_tokens()
        return other

    def id_of(self, text: str) -> int | None:
        """Id of a special token or of a whole piece, or None."""
        return self._special[text].id if text in self._special else self._backend.id_of(text)

    def is_special(self, text: str) -> bool:
        """Whether :meth:`encode` reads ``text`` as one special token."""
        return text in self._special

    @property
    def legacy(self) -> bool:
        """Whether text after a special token begins with a dummy space, as in the slow tokenizer of LLaMA."""
        return self._slow and self._legacy

    def sentencepieces(self) -> list[tuple[str, float, int]]:
        """Piece, score and kind of every id of a sentencepiece model; empty for other tokenizers.

        Kinds: 1 normal, 2 unknown, 3 control, 5 unused, 6 byte.
        """
        return self._backend.entries() if isinstance(self._backend, SentencePiece) else []

    @property
    def special_tokens(self) -> dict[str, Special]:
        """The strings that :meth:`encode` reads as one token."""
        return dict(self._special)

    def piece(self, index: int) -> str:
        """The piece of an id as the vocabulary spells it; empty if it has none."""
        if index in self._text_of:
            return self._text_of[index]
        return self._backend.piece(index) if 0 <= index < self._backend.size else ""

    def bytes_of(self, index: int) -> bytes:
        """What a token adds to a text, perhaps a part of a character; of a special token its name.

        Joined over the tokens of an answer they are its text, but for the dummy space before the first.
        """
        if index in self._text_of:
            return self._text_of[index].encode()
        if not 0 <= index < self._backend.size:
            return b""
        return self._backend.bytes_of(index) or self._backend.piece(index).encode()

    def encode_inside(self, text: str) -> list[int]:
        """Ids of ordinary text in the middle of an answer: nothing in it is special, no dummy space before it."""
        return self._backend.encode(_encodable(text), True, True) if text else []

    def is_plain(self, index: int) -> bool:
        """Whether a token is ordinary text, and decoding writes :meth:`bytes_of` for it."""
        special = index in self._skipped or index in self._text_of or not 0 <= index < self._backend.size
        return not special and bool(self._backend.bytes_of(index)) and not is_control(self._backend.piece(index))

    def encode(self, text: str, bos: bool = False, literal: Ranges = ()) -> list[int]:
        """Token ids ``[s]``; never adds an end id.

        Args:
            text: special strings in it become their ids.
            bos: put the begin id in front, if the vocabulary has one.
            literal: ranges of ``text`` (a user's words) in which special strings are ordinary text.
        """
        ids = [self.bos] if bos and self.bos is not None else []
        text = _encodable(text)
        if not self._slow and not self._overlaps(text, literal):
            return ids + (self._backend.encode(text, False) if text else [])
        for k, (chunk, follows) in enumerate(self._chunks(text, literal)):
            ids += self._backend.lead if k == 0 and isinstance(chunk, int) and text.startswith(self._inline) else []
            ids += [chunk] if isinstance(chunk, int) else self._backend.encode(chunk, True, follows)
        return ids

    def lengths(self, text: str, cuts: Sequence[tuple[int, bool]], literal: Ranges = ()) -> list[int]:
        """For each place in ``text``, how many of its ids (see :meth:`encode`) are before it.

        Args:
            text: the text.
            cuts: characters; with each, whether an id that goes across it counts as after it (else before).
            literal: see :meth:`encode`.
        """
        if not cuts:
            return []
        text = _encodable(text)
        if isinstance(self._backend, Fast) and not self._overlaps(text, literal):
            spans = self._backend.spans(text)
            return [sum(a < cut and (b <= cut or not after) for a, b in spans) for cut, after in cuts]
        return [len(self.encode(text[:cut], literal=[r for r in literal if r[1] <= cut])) for cut, _ in cuts]

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """Text of ``ids``; ids without a piece (rows of the LLM beyond the tokenizer) are dropped.

        ``skip_special`` drops bos, eos, unk, pad and the other special tokens, as the published tokenizer does.
        """
        out: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if skip_special and i in self._skipped:
                continue
            if self._slow and i in self._text_of:
                out += [self._backend.decode(run, skip_special), self._text_of[i]]
                run = []
            else:
                run.append(i)
        return "".join([*out, self._backend.decode(run, skip_special)])

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self)

    def _overlaps(self, text: str, literal: Ranges) -> bool:
        """Whether a special string is in a literal stretch, or overlaps one."""
        matches = self._refused.finditer(text) if self._refused and literal else ()
        return any(match.start() < b and a < match.end() for match in matches for a, b in literal)

    def _chunks(self, text: str, literal: Ranges) -> list[tuple[str | int, bool]]:
        """Plain chunks and special ids in order; a special token absorbs the blanks around it if it is told to.

        With each, whether it follows a token after which no dummy space is written.
        """
        parts: list[str] = []
        specials: list[str] = []
        start = at = 0
        for a, b in [*literal, (len(text), len(text))]:
            for match in self._split.finditer(text, at, a) if self._split else ():
                parts.append(text[start : match.start()])
                specials.append(match.group())
                start = match.end()
            at = b
        parts.append(text[start:])
        out: list[tuple[str | int, bool]] = []
        for k, part in enumerate(parts):
            before, after = specials[k - 1] if k else "", specials[k] if k < len(specials) else ""
            part = part.lstrip() if before and self._special[before].rstrip else part
            part = part.rstrip() if after and self._special[after].lstrip else part
            follows = bool(before) and (not self._legacy or before in self._inline)
            out += [(part, follows)] if part else []
            out += [(self._special[after].id, False)] if after else []
        return out


def _encodable(text: str) -> str:
    """``text`` with question marks for lone surrogates (bytes of a terminal that were not UTF-8)."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def tokenizer_folder(path: str | Path) -> Path:
    """The folder with the files of a tokenizer: ``path``, or a temporary one of those in a GGUF file.

    Raises WeightsError: a GGUF file without a tokenizer that can be read.
    """
    if not is_gguf(path):
        return Path(path)
    from vlm.models.llm.gguf import gguf_tokenizer

    return gguf_tokenizer(path)


def _backend_of(folder: Path, fast: bool) -> SentencePiece | Fast:
    """What reads the vocabulary of a folder; ``fast``: ``tokenizer.json`` where both files are there."""
    slow, json_file = folder / "tokenizer.model", folder / "tokenizer.json"
    if slow.is_file() and not (fast and json_file.is_file()):
        return SentencePiece(slow)
    if json_file.is_file():
        if fault := mistaken(json_file):
            raise WeightsError(fault, fix="fetch tokenizer.json again")
        return Fast(read_text(json_file, error=WeightsError), json_file)
    result = "no such folder" if not folder.is_dir() else "neither tokenizer.model nor tokenizer.json in it"
    raise WeightsError(f"tokenizer folder {folder}: {result}", fix="name the LLM's Hugging Face folder")
