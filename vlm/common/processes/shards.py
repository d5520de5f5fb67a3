"""Tensors that are split over the processes of a group (torch's ``DTensor``), and whole ones, by the same functions.

A split tensor has its first dimension in pieces as ``torch.chunk`` cuts them: process r of n has rows ``r * k`` to
``(r + 1) * k`` with ``k = ceil(rows / n)``; the last ones may have fewer rows, or none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PIECE = 2**24
"""Bytes that :func:`fill` copies at a time."""


def is_split(tensor: Tensor) -> bool:
    """Whether this process holds a piece of ``tensor``."""
    module = sys.modules.get("torch.distributed.tensor")  # importing it takes long, and without it there is none
    return module is not None and isinstance(tensor, module.DTensor)


def own(tensor: Tensor) -> Tensor:
    """The rows of ``tensor`` that this process holds, in place: all, unless it is split."""
    split: Any = tensor.detach()
    return split.to_local() if is_split(split) else tensor


def own_rows(tensor: Tensor) -> slice:
    """Which rows of a split ``tensor`` this process holds."""
    split: Any = tensor
    mesh, total = split.device_mesh, split.shape[0]
    step = -(-total // mesh.size(mesh.ndim - 1))
    start = min(mesh.get_local_rank(mesh.ndim - 1) * step, total)
    return slice(start, min(start + step, total))


def is_first(tensor: Tensor) -> bool:
    """Whether this process is in the first of the groups that each hold a split ``tensor``."""
    split: Any = tensor
    place = split.device_mesh.get_coordinate()
    return place is not None and not any(place[:-1])


def fill(target: Tensor, source: Tensor, done: Callable[[Tensor], None] | None = None) -> None:
    """Copy ``source``, a whole tensor, into ``target``; of a split one only the rows of this process are read.

    With ``done``, a few rows are copied at a time; it is then called with those of ``source``, which are not read
    again.
    """
    with torch.no_grad():
        if is_split(target):
            source, target = source[own_rows(target)], own(target)
        if done is None or source.dim() == 0:
            target.copy_(source)
            return
        step = max(1, PIECE * len(source) // max(source.nbytes, 1))
        for begin in range(0, len(source), step):
            rows = slice(begin, begin + step)
            target[rows].copy_(source[rows])
            done(source[rows])


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` as a plain one; of a split one every process must ask at the same time, and gets a copy."""
    if not is_split(tensor):
        return tensor
    split: Any = tensor.detach()
    return split.to(split.device_mesh.device_type).full_tensor()  # rows that wait in host memory cannot be sent


def rows_of(tensor: Tensor, index: Tensor) -> Tensor:
    """``tensor[index]`` for row numbers ``index [k]``, detached; of a split one every process must ask."""
    tensor = tensor.detach()
    if not is_split(tensor):
        return tensor[index.to(tensor.device)]
    split: Any = tensor
    mesh, rows, values = split.device_mesh, own_rows(tensor), own(tensor)
    found = torch.zeros(len(index), *tensor.shape[1:], dtype=torch.promote_types(values.dtype, torch.float32))
    here = (index >= rows.start) & (index < rows.stop)
    found[here] = values[(index[here] - rows.start).to(values.device)].to(found)
    found = found.to(mesh.device_type)
    torch.distributed.all_reduce(found, group=mesh.get_group(mesh.ndim - 1))
    return found.to(tensor.dtype)


def most(number: int, device: torch.device) -> int:
    """The largest ``number`` of all processes; a collective call."""
    found = torch.tensor(number, device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return int(found)


def machine_share() -> int:
    """Processes of the group that share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or torch.distributed.get_world_size())
