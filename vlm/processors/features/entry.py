"""An entry of a feature cache as bytes: a fixed header, then the numbers. Nothing in it is ever executed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import torch

from vlm.common.types import Features

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of stored features and of the computation, by their numbers in a header."""
_HEADER = struct.Struct("<4sBBBB10IQ")
_MAGIC = b"vf1\n"
_MOST_PIXELS = 1 << 40


class DamagedEntry(Exception):
    """Bytes that no entry has."""


@dataclass(frozen=True)
class Entry:
    """The features of one medium, ``[1, f, v, d]``, and what the loader tells of its pixels without decoding them."""

    features: Features
    dtype: torch.dtype  # in which they were computed
    shape: tuple[int, int, int]  # frames, height and width of the pixels
    size: tuple[int, int] | None  # height and width before the recipe
    decoded: int  # pixels that were decoded


def pack(entry: Entry) -> list[Any]:
    """The pieces of the bytes of an entry, whose features are on the CPU."""
    value = entry.features
    _, f, v, d = value.tokens.shape
    grid = (0, 0) if value.grid is None else value.grid[0].tolist()
    codes = (DTYPES.index(value.tokens.dtype), DTYPES.index(entry.dtype))
    numbers = (f, v, d, *grid, *entry.shape, *(entry.size or (0, 0)))
    head = _HEADER.pack(_MAGIC, *codes, value.mask is not None, value.grid is not None, *numbers, entry.decoded)
    pieces = [head, _raw(value.tokens)]
    return pieces if value.mask is None else [*pieces, _raw(value.mask)]


def unpack(data: bytearray) -> Entry:
    """The entry of these bytes, whose numbers it uses in place. Raises DamagedEntry: they are none."""
    try:
        magic, stored, computed, masked, gridded, *numbers, decoded = _HEADER.unpack_from(data)
        f, v, d, rows, columns, frames, height, width, high, wide = numbers
        dtypes = (DTYPES[stored], DTYPES[computed])
    except (struct.error, IndexError) as error:
        raise DamagedEntry(str(error)) from error
    start, count = _HEADER.size, f * v * d
    end = start + count * dtypes[0].itemsize
    if magic != _MAGIC or len(data) != end + (f * v if masked else 0) or not count:
        raise DamagedEntry("its length is not that of its header")
    if not 0 < frames * height * width <= _MOST_PIXELS or max(data[end:], default=0) > 1:
        raise DamagedEntry("its header or mask cannot be")
    tokens = torch.frombuffer(data, dtype=dtypes[0], count=count, offset=start).view(1, f, v, d)
    mask = torch.frombuffer(data, dtype=torch.bool, count=f * v, offset=end).view(1, f, v) if masked else None
    grid = torch.tensor([[rows, columns]]) if gridded else None
    size = (high, wide) if high and wide else None
    return Entry(Features(tokens, mask, grid), dtypes[1], (frames, height, width), size, decoded)


def _raw(tensor: torch.Tensor) -> memoryview:
    data: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)
