"""Data parallelism with a copy of the model in every process."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vlm.common import dist


def wrap(model: nn.Module, *, find_unused_parameters: bool = False, broadcast_buffers: bool = False) -> nn.Module:
    """``model`` for this process group: itself when alone, else in DistributedDataParallel.

    Args:
        model: already on this process's device.
        find_unused_parameters: needed only if a step may not use every trainable parameter.
        broadcast_buffers: send rank 0's buffers before each forward; no shipped model needs it.
    """
    if dist.world_size() == 1:
        return model
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in torch
    options: dict[str, Any] = {"find_unused_parameters": find_unused_parameters, buffers: broadcast_buffers}
    return DistributedDataParallel(model, **options)


def accumulate(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Context of one micro-batch: gradients are exchanged only in the ``last`` one of a step."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()
