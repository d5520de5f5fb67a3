"""Special tokens of a tokenizer folder, read by the rules of the slow tokenizer of 2023.

A special token given as a plain string absorbs the blanks on both sides; one given as an AddedToken mapping follows
its ``lstrip`` and ``rstrip``, even if another role names it as a string; begin, end and unknown token named only in
``tokenizer_config.json`` absorb none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm.common.errors import WeightsError, printable
from vlm.common.file_kind import mistaken

ROLES = ("bos", "eos", "unk", "pad")
FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
DECODER, MORE = "added_tokens_decoder", "additional_special_tokens"
MAX_ID = 10**9

_CONTROL = re.compile(
    r"<\|[^<>|\s]+\|>|</?s>|<(?:unk|pad|bos|eos)>|<(?:start|end)_of_(?:turn|text)>|\[/?INST\]|\[(?:EOS|BOS|PAD)\]"
)


@dataclass(frozen=True)
class Special:
    """One special token: its id, the sides on which it absorbs blanks, and whether decoding omits it."""

    id: int
    lstrip: bool = True
    rstrip: bool = True
    skip: bool = True


@dataclass
class SpecialTokens:
    """All special tokens of a tokenizer: ``roles`` (bos, eos, unk, pad) -> id, ``by_text`` string -> token."""

    roles: dict[str, int]
    by_text: dict[str, Special]

    def add(self, text: str, known: int | None, size: int) -> None:
        """Make ``text`` special; a new one is a plain string with the next id of a vocabulary of ``size`` pieces."""
        if text in self.by_text:
            self.by_text[text] = replace(self.by_text[text], skip=True)
            return
        self.by_text[text] = Special(self.next_id(size) if known is None else known)

    def next_id(self, size: int) -> int:
        """The first id after a vocabulary of ``size`` pieces and all special tokens."""
        return max([size, *(token.id + 1 for token in self.by_text.values())])

    def force(self, role: str, index: int, text: str) -> None:
        """Set the id of ``role``; its string then counts as a plain one, as in the published code."""
        self.roles[role] = index
        self.by_text[text] = Special(index)


def is_control(text: str) -> bool:
    """Whether a token frames a conversation by its spelling, e.g. ``<|im_end|>``, even if no file calls it special."""
    return _CONTROL.fullmatch(text) is not None


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in ``file``, empty without one. Raises WeightsError: not JSON."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        text = mistaken(file) or f"{file} is not JSON: {error}"
        raise WeightsError(text, fix="fetch the tokenizer files again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds {type(content).__name__}, expected a mapping", fix="fetch it again")
    return content


def token_texts(folder: Path) -> dict[str, str]:
    """Texts of the tokens that the JSON files of ``folder`` name, by key such as ``eos_token`` or ``image_token``.

    Raises WeightsError: a file that is not JSON.
    """
    texts: dict[str, str] = {}
    for name in ("processor_config.json", *FILES[:2]):
        content = read_json(folder / name)
        named = content.get("extra_special_tokens")
        for key, entry in {**(named if isinstance(named, dict) else {}), **content}.items():
            if key.endswith("_token") and isinstance(entry, str | dict) and (text := _content(entry)):
                texts[key] = text
    return texts


def end_ids(folder: Path) -> list[int]:
    """The end ids that ``generation_config.json`` of ``folder`` lists, if any. Raises WeightsError: not JSON."""
    listed = read_json(folder / "generation_config.json").get("eos_token_id")
    ids = listed if isinstance(listed, list) else [listed]
    return [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < MAX_ID]


def read_special_tokens(
    folder: Path, size: int, defaults: dict[str, int], id_of: Callable[[str], int | None]
) -> SpecialTokens:
    """Special tokens that the JSON files of ``folder`` name.

    Args:
        folder: holds :data:`FILES`, or some of them.
        size: pieces of the vocabulary itself.
        defaults: role -> id of the vocabulary, used if the files name nothing (or an empty string).
        id_of: piece -> id in the vocabulary, or None.

    Raises WeightsError: an entry is of another type than tokenizers write.
    """
    config, named, added = (read_json(folder / name) for name in FILES)
    check_entries(folder, config, named, added)
    decoder = {e["content"]: (int(i), e) for i, e in (config.get(DECODER) or {}).items()}
    ids: dict[str, int] = dict(added)
    ids |= {text: i for text, (i, _) in decoder.items() if i >= size}
    tokens = SpecialTokens(dict(defaults), {})
    texts: dict[str, Any] = {}
    for role in ROLES:
        text, entry = _entry(config, named, f"{role}_token")
        result = ids.get(text, id_of(text)) if text else None
        if result is not None:
            tokens.roles[role] = result
            texts[text] = entry if isinstance(entry, dict) else texts.get(text, entry)
    for source in (config, named):
        texts |= {_content(raw): raw for raw in source.get(MORE) or []}
    for text, i in ids.items():
        left, right = _strips(decoder[text][1] if text in decoder else texts.get(text, text))
        skip = text in texts or bool(text in decoder and decoder[text][1].get("special"))
        tokens.by_text[text] = Special(i, left, right, skip)
    for text in [t for t in texts if t and t not in tokens.by_text]:
        left, right = _strips(decoder[text][1] if text in decoder else texts[text])
        known = id_of(text)  # the published loader adds what is named but missing
        tokens.by_text[text] = Special(tokens.next_id(size) if known is None else known, left, right)
    return tokens


def check_entries(folder: Path, config: dict[str, Any], named: dict[str, Any], added: dict[str, Any]) -> None:
    """Raises WeightsError for the first entry of :data:`FILES` that is not a token, or an id that is not a number."""
    found = [(FILES[2], text, i, isinstance(i, int) and 0 <= i < MAX_ID) for text, i in added.items()]
    decoder = config.get(DECODER) or {}
    found.append((FILES[0], DECODER, decoder, isinstance(decoder, dict)))
    for i, entry in decoder.items() if isinstance(decoder, dict) else ():
        good = i.isdecimal() and len(i) < 10 and isinstance(entry, dict) and isinstance(entry.get("content"), str)
        found.append((FILES[0], f"{DECODER}.{i}", entry, good))
    for file, source in zip(FILES, (config, named)):
        for key in (f"{role}_token" for role in ROLES):
            found.append((file, key, source.get(key), _is_token(source.get(key))))
        listed = source.get(MORE) or []
        found.append((file, MORE, listed, isinstance(listed, list) and all(map(_is_token, listed))))
    for file, key, value, good in found:
        if not good:
            text = f"{folder / file}: {key} is {value!r:.80}, which is not what a tokenizer writes there"
            raise WeightsError(text, fix="fetch the tokenizer files again")


def _is_token(entry: Any) -> bool:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text is None or (isinstance(text, str) and printable(text) == text)  # no lone surrogates


def _entry(config: dict[str, Any], named: dict[str, Any], key: str) -> tuple[str, Any]:
    """String of a role and its entry; a string in ``tokenizer_config.json`` counts as an entry without strips."""
    if named.get(key):
        return _content(named[key]), named[key]
    text = _content(config.get(key)) if key not in named else ""
    return text, config.get(key) if isinstance(config.get(key), dict) else {"content": text}


def _content(token: Any) -> str:
    """The string of a token entry, which is a string or an AddedToken mapping."""
    return (token.get("content") or "") if isinstance(token, dict) else (token or "")


def _strips(entry: Any) -> tuple[bool, bool]:
    """Whether a token absorbs blanks on its left and right."""
    if isinstance(entry, dict):
        return bool(entry.get("lstrip", False)), bool(entry.get("rstrip", False))
    return True, True
