"""The part of a tensor that this process holds, in files of one process each.

A file is plain safetensors; its metadata says where in the whole tensors its parts begin, in the way that
``torch.distributed.checkpoint`` writes Hugging Face files. Nothing in it is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.checkpoint.header import header
from vlm.checkpoint.run_files import entry_of, flush
from vlm.checkpoint.stream import write_safetensors
from vlm.common import dist
from vlm.common.processes.shards import is_first, is_split, own, own_rows

OFFSETS = "DCP_SHARDING_INFO"
"""Key of the metadata, as torch's reader of such files expects it."""
OFFSET = "saved_offsets"


@dataclass(frozen=True)
class Piece:
    """A part of a tensor, on the host."""

    key: str
    shape: tuple[int, ...]  # of the whole tensor
    offsets: tuple[int, ...]  # where the part begins
    tensor: Tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of a model is split over processes."""
    return any(is_split(p) for p in model.parameters())


def own_pieces(key: str, tensor: Tensor) -> list[Piece]:
    """Host copies of what this process stores of a tensor.

    Of copies in several processes the first one's is stored; a tensor that is not split is stored by rank 0.
    """
    shape = tuple(tensor.shape)
    split, start = is_split(tensor), 0
    if split:
        first, start = is_first(tensor), own_rows(tensor).start
    else:
        first = dist.is_main()
    part = own(tensor)
    if not first or (split and not part.numel()):
        return []
    offsets = (start, *(0 for _ in shape[1:])) if shape else ()
    return [Piece(key, shape, offsets, part.detach().to("cpu", copy=True).contiguous())]


def write_pieces(file: Path, pieces: Iterable[Piece]) -> dict[str, Any]:
    """Write the parts of this process, to disk, and return size and CRC-32 of the file."""
    parts, where = {}, {}
    for piece in pieces:
        parts[piece.key] = piece.tensor
        where[piece.key] = {OFFSET: list(piece.offsets), "shape": list(piece.shape)}
    write_safetensors(file, parts, parts.__getitem__, {OFFSETS: json.dumps(where)})
    flush(file)
    return entry_of(file)


def join_pieces(files: Iterable[Path], target: Path, metadata: Mapping[str, str]) -> None:
    """Write one safetensors file with the whole tensors of several with parts, one tensor in memory at a time.

    Raises ValueError: the parts of a tensor do not make up the whole.
    """
    from safetensors import safe_open

    facts: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[Path, list[int]]]] = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            where = json.loads(stored.metadata()[OFFSETS])
        for key, fact in header(file).items():
            facts[key] = torch.empty(where[key]["shape"], dtype=fact.dtype, device="meta")
            parts.setdefault(key, []).append((file, where[key][OFFSET]))

    def make(key: str) -> Tensor:
        whole, filled = torch.empty(facts[key].shape, dtype=facts[key].dtype), 0
        for file, offsets in parts[key]:
            with safe_open(file, "pt") as stored:
                part = stored.get_tensor(key)
            whole[tuple(slice(o, o + n) for o, n in zip(offsets, part.shape))] = part
            filled += part.numel()
        if filled != whole.numel():
            raise ValueError(f"{key}: {filled} of {whole.numel()} numbers are there")
        return whole

    write_safetensors(target, facts, make, metadata)
