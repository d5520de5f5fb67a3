"""An example as the pieces that a model is given: which of them are targets, and where images and videos are."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from vlm.common.errors import DataError, UserError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example, Image, Part, Sample, Text
from vlm.datasets.inspect.scan import Opened, encode, references
from vlm.datasets.loading.mixing import derive_seed
from vlm.datasets.loading.sources import read_sample
from vlm.processors.collate import VisualTokens
from vlm.processors.image import decode
from vlm.processors.processor import Processor
from vlm.processors.tokenizer.tokenizer import Tokenizer

GREEN, BLUE, GREY, RESET = "\x1b[1;32m", "\x1b[1;34m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class Piece:
    """A token, or a whole medium (``medium``), of an example; ``trained``: it is a target."""

    text: str
    trained: bool = False
    medium: bool = False


@dataclass
class Shown:
    """A sample with what the processor made of it (None without tokenizer), or why it cannot be used."""

    name: str
    sample: Sample | None = None
    example: Example | None = None
    error: str = ""


def draw_samples(
    opened: Opened, processor: Processor | None, count: int, seed: int | None, run_seed: int = 42
) -> list[Shown]:
    """The first ``count`` records of a dataset, or, with a seed, some drawn at random.

    Random choices within a record are those of the first pass of a run with seed ``run_seed``.
    """
    assert opened.source is not None
    result = []
    for ref in references(opened.source.dataset, count, seed):
        try:
            sample = read_sample(opened.source, ref, run_seed)
            rng = random.Random(derive_seed(run_seed, "sample", opened.source.name, ref.epoch, ref.index))
            example = None if processor is None else encode(processor, sample, rng, opened.questions)
            result.append(Shown(sample.id or ref.name, sample, example))
        except UserError as error:
            result.append(Shown(ref.name, error=str(error)))
    return result


def pieces(example: Example, tokenizer: Tokenizer, visual_tokens: VisualTokens | None = None) -> list[Piece]:
    """Every token of an example in order; a medium is one piece that says how many positions it takes."""
    positions, result, number = (visual_tokens or VisualTokens()).of_media(example), [], 0
    for index, label in zip(example.ids, example.labels, strict=True):
        if index == MEDIA_TOKEN:
            frames = len(example.media[number])
            kind = "image" if frames == 1 else f"video of {frames} frames"
            result.append(Piece(f"[{kind} {number + 1}: {positions[number]} tokens]", medium=True))
            number += 1
            continue
        text = tokenizer.piece(index) or f"<{index}>"
        result.append(Piece(readable(text), trained=label != IGNORE_INDEX))
    return result


def readable(piece: str) -> str:
    """A piece with spaces as ``▁`` and line breaks as ``⏎``; byte-level spellings become text where possible."""
    if piece.startswith("<0x") and piece.endswith(">"):
        return "⏎" if piece == "<0x0A>" else piece
    return _from_bytes(piece).replace(" ", "▁").replace("\n", "⏎")


def _from_bytes(piece: str) -> str:
    """Undo the spelling of GPT-2's byte-level vocabularies, in which a space is Ġ."""
    table = _byte_table()
    if "▁" in piece or all(ord(c) < 0x100 for c in piece):
        return piece
    try:
        return bytes(table[c] for c in piece).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return piece


@cache
def _byte_table() -> dict[str, int]:
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = sorted(set(range(256)) - set(plain))
    return {chr(b): b for b in plain} | {chr(0x100 + k): b for k, b in enumerate(rest)}


def terminal_text(found: Sequence[Piece], colour: bool) -> str:
    """Pieces separated by ``|``; trained ones green (or between « and »), media blue."""
    out = []
    for (trained, medium), run in groupby(found, key=lambda p: (p.trained, p.medium)):
        text = "|".join(p.text for p in run)
        if colour:
            out.append(f"{BLUE if medium else GREEN if trained else ''}{text}{RESET}")
        else:
            out.append(f"«{text}»" if trained else text)
    return "|".join(out)


def spoken(sample: Sample, limit: int = 300, sizes: bool = False) -> list[str]:
    """``role: text`` of every message, media by their kind and path or size; ``sizes``: and images by their pixels."""
    return [f"{m.role}: {' '.join(_described(p, sizes)[:limit] for p in m.parts)}" for m in sample.messages]


def describe_media(sample: Sample) -> list[str]:
    """The media of a sample in order, each by its kind and path or size."""
    return [_described(m) for message in sample.messages for m in message.media]


def _described(part: Part, sizes: bool = False) -> str:
    if isinstance(part, Text):
        return repr(part.text)
    kind, source = type(part).__name__.lower(), part.source
    size = f", {_size(source)}" if sizes and isinstance(part, Image) and isinstance(source, str | bytes) else ""
    if isinstance(source, bytes | bytearray):
        return f"<{kind}, {len(source) / 1024:.1f} KiB{size}>"
    return f"<{kind} {source}{size}>"


def _size(source: str | bytes) -> str:
    """Width x height of an image file or of encoded bytes, or that it cannot be read."""
    if isinstance(source, str) and not os.path.exists(source):
        return "missing"
    try:
        width, height = decode.Opened(source, "", decode.PIXEL_CAP).size
    except DataError:
        return "damaged"
    return f"{width}x{height}"
