"""How the pieces of a ``tokenizer.json`` spell bytes, read from its decoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _alphabet() -> dict[str, int]:
    """The letters with which GPT-2's vocabularies write bytes: printable bytes as they are, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + k): byte for k, byte in enumerate(others)}


ALPHABET = _alphabet()


def spelling_of(decoder: Any) -> Callable[[str], bytes]:
    """Piece -> bytes, for the ``decoder`` section of a ``tokenizer.json``; without one, pieces are words."""
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = {step.get("type"): step for step in steps}
    if "ByteLevel" in kinds:
        return _from_letters
    if "WordPiece" in kinds or not kinds:
        prefix = str(kinds["WordPiece"].get("prefix", "##")) if kinds else ""
        return lambda piece: _word(piece, prefix)
    spaces = [str(kinds["Metaspace"].get("replacement", "\u2581"))] if "Metaspace" in kinds else []
    for step in steps:
        if step.get("type") == "Replace" and step.get("content") == " ":
            spaces.append(str(step.get("pattern", {}).get("String", "")))
    has_bytes = "ByteFallback" in kinds
    return lambda piece: _piece(piece, [s for s in spaces if s], has_bytes)


def _from_letters(piece: str) -> bytes:
    if any(letter not in ALPHABET for letter in piece):
        return piece.encode()  # an added token, written as it is
    return bytes(ALPHABET[letter] for letter in piece)


def _word(piece: str, prefix: str) -> bytes:
    if not piece:
        return b""
    joined = bool(prefix) and piece.startswith(prefix)
    return (piece.removeprefix(prefix) if joined else f" {piece}").encode()


def _piece(piece: str, spaces: list[str], has_bytes: bool) -> bytes:
    byte = _BYTE.fullmatch(piece) if has_bytes else None
    if byte:
        return bytes([int(byte.group(1), 16)])
    for space in spaces:
        piece = piece.replace(space, " ")
    return piece.encode()
