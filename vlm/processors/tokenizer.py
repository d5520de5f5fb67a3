"""Text <-> ids, independent of the installed transformers.

Two backends behind one class, chosen by what the folder holds:

* ``tokenizer.model``: sentencepiece, encoded as the slow LLaMA tokenizer of 2023 did. The text is
  cut at special strings (``<s>``, ``</s>``, ``<unk>`` and the folder's added tokens) and every plain
  chunk is encoded alone, so each chunk begins with its own dummy space.
* ``tokenizer.json`` only: the ``tokenizers`` package, as the file says.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

from vlm.common.errors import WeightsError


class _Backend(Protocol):
    """What :class:`Tokenizer` needs from a vocabulary."""

    size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int], skip_special: bool) -> str: ...

    def id_of(self, piece: str) -> int | None: ...


class _SentencePiece:
    def __init__(self, file: Path) -> None:
        self._proto = file.read_bytes()
        self._load(str(file))

    def _load(self, name: str) -> None:
        import sentencepiece

        try:
            self._sp = sentencepiece.SentencePieceProcessor(model_proto=self._proto)
        except RuntimeError as error:
            raise WeightsError(f"{name} is not a sentencepiece model", fix="fetch tokenizer.model again") from error
        self.size = self._sp.vocab_size()
        own = {"bos": self._sp.bos_id(), "eos": self._sp.eos_id(), "unk": self._sp.unk_id()}
        self.defaults = {role: i for role, i in own.items() if i >= 0}

    def encode(self, text: str) -> list[int]:
        return self._sp.encode(text)

    def decode(self, ids: list[int], skip_special: bool) -> str:
        return self._sp.decode([i for i in ids if 0 <= i < self.size])

    def id_of(self, piece: str) -> int | None:
        found = self._sp.piece_to_id(piece)
        return None if found == self.defaults.get("unk") and piece != self._sp.id_to_piece(found) else found

    def piece(self, index: int) -> str:
        return self._sp.id_to_piece(index)

    def __getstate__(self) -> bytes:
        return self._proto

    def __setstate__(self, proto: bytes) -> None:
        self._proto = proto
        self._load("tokenizer.model")


class _Fast:
    def __init__(self, file: Path) -> None:
        self._json = file.read_text(encoding="utf-8")
        self._load(str(file))

    def _load(self, name: str) -> None:
        from tokenizers import Tokenizer as Rust

        try:
            whole = isinstance(json.loads(self._json), dict) and '"model"' in self._json
        except ValueError:
            whole = False
        if not whole:
            raise WeightsError(f"{name} is not a tokenizers file", fix="fetch tokenizer.json again")
        self._tok = Rust.from_str(self._json)
        self.size = self._tok.get_vocab_size(with_added_tokens=True)
        self.defaults: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return self._tok.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special: bool) -> str:
        return self._tok.decode(ids, skip_special_tokens=skip_special)

    def id_of(self, piece: str) -> int | None:
        return self._tok.token_to_id(piece)

    def __getstate__(self) -> str:
        return self._json

    def __setstate__(self, text: str) -> None:
        self._json = text
        self._load("tokenizer.json")


class Tokenizer:
    """One LLM's tokenizer. Make it with :meth:`from_folder`; pickles into loader workers.

    Attributes: ``bos``, ``eos``, ``unk``, ``pad`` ids (``None`` where the vocabulary has none; ``pad``
    always has a value) and ``vocab_size`` (ids the tokenizer can produce; the LLM may have more rows).
    """

    def __init__(
        self,
        backend: _Backend,
        *,
        special: dict[str, int],
        added: dict[str, tuple[int, bool, bool]] | None = None,
        pad_token: str | None = None,
    ) -> None:
        """``special`` role -> id; ``added`` string -> (id, strips left, strips right); see :meth:`from_folder`."""
        self._backend = backend
        self._added = added or {}
        self.bos, self.eos, self.unk = (special.get(role) for role in ("bos", "eos", "unk"))
        pad = backend.id_of(pad_token) if pad_token else None
        fallbacks = (pad, special.get("pad"), self.unk, self.eos, 0)
        self.pad: int = next(i for i in fallbacks if i is not None)
        self.vocab_size = max([backend.size, *(i + 1 for i, _, _ in self._added.values())])
        self._slow = isinstance(backend, _SentencePiece)
        self._special_text = {i: t for t, (i, _, _) in self._added.items()}
        if isinstance(backend, _SentencePiece):
            for i in (self.bos, self.eos, self.unk):
                if i is not None and i < backend.size:
                    self._special_text.setdefault(i, backend.piece(i))
        self._split = self._splitter()
        roles = (self.bos, self.eos, self.unk, self.pad, special.get("pad"))
        self._skipped = frozenset(i for i in roles if i is not None)

    @classmethod
    def from_folder(cls, path: str | Path, pad_token: str | None = "$$") -> Tokenizer:
        """Read the tokenizer of a Hugging Face LLM folder.

        Args:
            path: folder with ``tokenizer.model`` or ``tokenizer.json``.
            pad_token: existing piece used for padding (the published choice for LLaMA is ``$$``);
                where the vocabulary lacks it: the folder's pad token, else unk, else eos.

        Raises:
            WeightsError: no folder, no tokenizer in it, or an unreadable file.
        """
        folder = Path(path)
        files = {name: folder / name for name in ("tokenizer.model", "tokenizer.json")}
        backend: _SentencePiece | _Fast
        if files["tokenizer.model"].is_file():
            backend = _SentencePiece(files["tokenizer.model"])
        elif files["tokenizer.json"].is_file():
            backend = _Fast(files["tokenizer.json"])
        else:
            found = "no such folder" if not folder.is_dir() else "neither tokenizer.model nor tokenizer.json in it"
            raise WeightsError(f"tokenizer folder {folder}: {found}", fix="name the LLM's Hugging Face folder")
        config = _read_json(folder / "tokenizer_config.json") | _read_json(folder / "special_tokens_map.json")
        added = _added_tokens(folder, config, backend)
        special = dict(backend.defaults)
        for role in ("bos", "eos", "unk", "pad"):
            text = _content(config.get(f"{role}_token"))
            found_id = added[text][0] if text in added else backend.id_of(text) if text else None
            if found_id is not None:
                special[role] = found_id
        return cls(backend, special=special, added=added, pad_token=pad_token)

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """Ids of ``text``; ``bos`` puts the begin id in front where the vocabulary has one.

        Never adds an end id. Special strings inside the text become their ids.
        """
        ids = [self.bos] if bos and self.bos is not None else []
        if not self._slow:
            return ids + self._backend.encode(text)
        for chunk in self._chunks(text):
            ids += [chunk] if isinstance(chunk, int) else self._backend.encode(chunk)
        return ids

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """Text of ``ids``; ids without a piece (an LLM row beyond the tokenizer) give nothing.

        ``skip_special`` drops bos, eos, unk and pad, as the published tokenizer does.
        """
        ids = [int(i) for i in ids]
        if skip_special:
            ids = [i for i in ids if i not in self._skipped]
        out: list[str] = []
        run: list[int] = []
        for i in ids:
            if self._slow and i in self._special_text:
                out += [self._backend.decode(run, skip_special), self._special_text[i]]
                run = []
            else:
                run.append(i)
        return "".join([*out, self._backend.decode(run, skip_special)])

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self)

    def _splitter(self) -> re.Pattern[str] | None:
        texts = sorted(set(self._special_text.values()), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, texts)) + ")") if texts and self._slow else None

    def _chunks(self, text: str) -> list[str | int]:
        """Plain chunks and special ids in order; an added token eats the spaces around it if it says so."""
        if self._split is None:
            return [text] if text else []
        by_text = {t: i for i, t in self._special_text.items()}
        parts = self._split.split(text)
        for k in range(1, len(parts), 2):
            _, left, right = self._added.get(parts[k], (0, False, False))
            parts[k - 1] = parts[k - 1].rstrip() if left else parts[k - 1]
            parts[k + 1] = parts[k + 1].lstrip() if right else parts[k + 1]
        return [by_text[p] if k % 2 else p for k, p in enumerate(parts) if p]


class StreamDecoder:
    """Turns ids into text piece by piece; the pieces joined equal ``decode`` of all ids.

    A character whose bytes are not all there yet is held back.
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
        """What was held back, incomplete or not; call once at the end."""
        return self._emit(self._tokenizer.decode(self._ids))

    def _emit(self, text: str) -> str:
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file} is not JSON: {error}", fix="fetch the tokenizer files again") from error


def _content(token: Any) -> str:
    """The string of a token entry, which is a string or an AddedToken dictionary."""
    return (token.get("content") or "") if isinstance(token, dict) else (token or "")


def _added_tokens(folder: Path, config: dict[str, Any], backend: _Backend) -> dict[str, tuple[int, bool, bool]]:
    """Added strings -> (id, strips left, strips right).

    A plain string (``added_tokens.json``) strips on both sides, as the slow tokenizer of 2023 did.
    """
    entries = {_content(v): v for k, v in config.items() if k.endswith("_token") and isinstance(v, dict)}
    added: dict[str, tuple[int, bool, bool]] = {}
    for text, index in _read_json(folder / "added_tokens.json").items():
        entry = entries.get(text)
        left, right = (entry.get("lstrip", False), entry.get("rstrip", False)) if entry else (True, True)
        added[text] = (index, left, right)
    for index, entry in config.get("added_tokens_decoder", {}).items():
        if int(index) >= backend.size:
            added[entry["content"]] = (int(index), entry.get("lstrip", False), entry.get("rstrip", False))
    return added
