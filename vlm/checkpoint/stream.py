"""Reading and writing large folders of weights one tensor at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.header import TYPES, check_file
from vlm.checkpoint.safe import read_tensors
from vlm.checkpoint.strict import is_finite, not_finite
from vlm.common.errors import WeightsError

log = logging.getLogger(__name__)

OPEN_BYTES = 2**24
"""Bytes read before a file is closed and reopened: mapped pages count as memory of the process."""
SHARD_BYTES = 4 * 10**9
"""Default size limit of a weight file that is written."""


class TensorReader:
    """Single tensors of some files by name. One file is mapped at a time, and released after a few tensors.

    Attributes:
        facts: name -> shape and dtype (a tensor on the device ``meta``), in the order of the files.

    Raises:
        WeightsError: a file is missing, damaged or holds no tensors.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.facts: dict[str, Tensor] = {}
        self._files: dict[str, Path] = {}
        self._file: Path | None = None
        self._open: dict[str, Tensor] = {}
        self._used = 0
        self._mapped = True  # a file of torch before 1.6 is read as a whole, and kept
        for file in files:
            for name, tensor in read_tensors(file).items():
                self.facts[name], self._files[name] = tensor.to("meta"), file

    def read(self, name: str, dtype: torch.dtype | None = None, *, finite: bool = True) -> Tensor:
        """A copy of the tensor, converted if ``dtype`` is given.

        Raises WeightsError: it has NaN or infinite numbers (unless not ``finite``), or is converted from a type of
            quantised numbers.
        """
        if self._file != self._files[name]:
            self.release()
            self._file, self._open = self._files[name], read_tensors(self._files[name])
            self._mapped = check_file(self._files[name]) != "legacy"
        tensor = self._open[name]
        self._used += tensor.nbytes
        if dtype is not None and not tensor.is_floating_point() and tensor.dtype.itemsize == 1:
            raise WeightsError(f"{self._file}: {name} is {tensor.dtype}, expected floating-point numbers")
        copied = tensor.to(dtype or tensor.dtype, copy=True)
        if finite and not is_finite(copied):
            raise not_finite(str(self._file), name, tensor, copied.dtype)
        if self._mapped and self._used > OPEN_BYTES:
            self.release()
        return copied

    def release(self) -> None:
        """Close the open file."""
        self._file, self._open, self._used = None, {}, 0


def write_shards(
    folder: Path,
    facts: Mapping[str, Tensor],
    make: Callable[[str], Tensor],
    shard_bytes: int = SHARD_BYTES,
    *,
    safetensors: bool = False,
) -> list[Path]:
    """Write ``pytorch_model.bin`` or ``model.safetensors``, or shards and their index; returns the weight files.

    Args:
        folder: created if needed.
        facts: name -> shape and dtype (a tensor on any device) of what ``make`` gives, in the order of writing.
        make: gives a tensor; of a bin file all tensors are held at a time, of a safetensors file one.
        shard_bytes: largest file, unless one tensor is larger.
        safetensors: write that container.
    """
    groups: list[list[str]] = [[]]
    room = shard_bytes
    for name, fact in facts.items():
        if groups[-1] and fact.nbytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= fact.nbytes
    folder.mkdir(parents=True, exist_ok=True)
    stem, end = ("model", ".safetensors") if safetensors else ("pytorch_model", ".bin")
    names = [f"{stem}-{number:05d}-of-{len(groups):05d}{end}" for number in range(1, len(groups) + 1)]
    files = [folder / name for name in (names if len(groups) > 1 else [stem + end])]
    for file, group in zip(files, groups):
        if safetensors:
            write_safetensors(file, {name: facts[name] for name in group}, make)
        else:
            torch.save({name: make(name) for name in group}, file)
        log.info("%s: %d tensors", file, len(group))
    if len(groups) > 1:
        where = {name: file.name for file, group in zip(files, groups) for name in group}
        write_index(folder / f"{stem}{end}.index.json", sum(fact.nbytes for fact in facts.values()), where)
    return files


def write_safetensors(
    file: Path, facts: Mapping[str, Tensor], make: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file a tensor at a time, wide types first so that all are aligned.

    The package safetensors takes all tensors of a file at once. Arguments as :func:`write_shards`; ``metadata`` is
    stored besides the format.
    """
    codes = {dtype: code for code, dtype in TYPES.items()}
    order = sorted(facts, key=lambda name: -facts[name].dtype.itemsize)
    head: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name in order:
        place = [at, at + facts[name].nbytes]
        head[name] = {"dtype": codes[facts[name].dtype], "shape": list(facts[name].shape), "data_offsets": place}
        at = place[1]
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor, fact = make(name).contiguous(), facts[name]
            if tensor.shape != fact.shape or tensor.dtype != fact.dtype:
                raise ValueError(f"{name}: announced {fact.shape} {fact.dtype}, found {tensor.shape} {tensor.dtype}")
            out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)  # numpy has no bfloat16


def write_index(file: Path, size: int, where: Mapping[str, str]) -> None:
    """Write the index of sharded weights: their bytes, and the file of each tensor by name."""
    index = {"metadata": {"total_size": size}, "weight_map": where}
    file.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
