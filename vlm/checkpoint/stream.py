"""Reading and writing large folders of weights one tensor at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.safe import read_tensors

log = logging.getLogger(__name__)

OPEN_BYTES = 2**24
"""Bytes read before a file is closed and reopened: mapped pages count as memory of the process."""
SHARD_BYTES = 4 * 10**9
"""Default size limit of a weight file that is written."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


class TensorReader:
    """Single tensors of some files by name. One file is mapped at a time, and released after a few tensors.

    Attributes:
        facts: name -> file, shape, dtype, in the order of the files.

    Raises:
        WeightsError: a file is missing, damaged or holds no tensors.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.facts: dict[str, TensorInfo] = {}
        self._file: Path | None = None
        self._open: dict[str, Tensor] = {}
        self._used = 0
        for file in files:
            for name, tensor in read_tensors(file).items():
                self.facts[name] = TensorInfo(file, tuple(tensor.shape), tensor.dtype)

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of the tensor, converted if ``dtype`` is given."""
        facts = self.facts[name]
        if self._file != facts.file:
            self.release()
            self._file, self._open = facts.file, read_tensors(facts.file)
        tensor = self._open[name]
        self._used += tensor.numel() * tensor.element_size()
        copied = tensor.to(dtype or tensor.dtype, copy=True)
        if self._used > OPEN_BYTES:
            self.release()
        return copied

    def release(self) -> None:
        """Close the open file."""
        self._file, self._open, self._used = None, {}, 0


def write_shards(
    folder: Path, sizes: Mapping[str, int], make: Callable[[str], Tensor], shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write ``pytorch_model.bin``, or shards and their index.

    Args:
        folder: created if needed.
        sizes: name -> bytes of what ``make`` gives, in the order of writing.
        make: gives a tensor; one shard's tensors are held at a time.
        shard_bytes: largest file, unless one tensor is larger.

    Returns:
        The weight files.
    """
    groups: list[list[str]] = [[]]
    room = shard_bytes
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= size
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    where: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        one = len(groups) == 1
        file = folder / ("pytorch_model.bin" if one else f"pytorch_model-{number:05d}-of-{len(groups):05d}.bin")
        torch.save({name: make(name) for name in names}, file)
        where |= dict.fromkeys(names, file.name)
        written.append(file)
        log.info("%s: %d tensors", file, len(names))
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return written
