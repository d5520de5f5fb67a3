"""Writing safetensors files one tensor at a time.

The library ``safetensors`` takes a whole file's tensors at once and copies them; here one tensor is held.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.stream import SHARD_BYTES, write_index

log = logging.getLogger(__name__)

NAME = "model.safetensors"
DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names of dtypes."""


def write_safetensors(
    folder: Path, facts: Mapping[str, Tensor], make: Callable[[str], Tensor], shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write ``model.safetensors``, or shards and their index, as transformers names them; returns the weight files.

    Args:
        folder: an existing folder.
        facts: name -> shape and dtype (a tensor on any device) of what ``make`` gives, in the order of writing.
        make: gives a tensor; one is held at a time.
        shard_bytes: largest file, unless one tensor is larger.

    Raises:
        OSError: the disk is full.
    """
    groups: list[list[str]] = [[]]
    room = shard_bytes
    for name, fact in facts.items():
        if groups[-1] and fact.nbytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= fact.nbytes
    count = len(groups)
    stem = NAME.removesuffix(".safetensors")
    names = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    files = [folder / name for name in (names if count > 1 else [NAME])]
    for file, group in zip(files, groups, strict=True):
        _write(file, {name: facts[name] for name in group}, make)
        log.info("%s: %d tensors", file, len(group))
    if count > 1:
        where = {name: file.name for file, group in zip(files, groups, strict=True) for name in group}
        write_index(folder / f"{NAME}.index.json", sum(fact.nbytes for fact in facts.values()), where)
    return files


def _write(file: Path, facts: Mapping[str, Tensor], make: Callable[[str], Tensor]) -> None:
    """One file: the length of the header, the header, the numbers; wide types first, so that all are aligned."""
    order = sorted(facts, key=lambda name: -facts[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        fact = facts[name]
        place = [at, at := at + fact.nbytes]
        header[name] = {"dtype": DTYPES[fact.dtype], "shape": list(fact.shape), "data_offsets": place}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor, fact = make(name), facts[name]
            if tensor.shape != fact.shape or tensor.dtype != fact.dtype:
                raise ValueError(f"{name}: {tensor.dtype} {list(tensor.shape)}, announced {fact.dtype} {fact.shape}")
            stream.write(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
