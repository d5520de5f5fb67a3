"""A model on the processes of a run, as the training loop uses it; here with a copy in every process."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlm.common import dist
from vlm.models.vlm import VLM


class Spread:
    """How a model is spread over the processes. This one: each has a copy (:mod:`.sharding` has the other).

    Attributes:
        model: the model itself, with its names.
        called: what computes a loss: ``model``, maybe wrapped.
        alone: whether a process may call ``model`` without the others.
    """

    alone = True

    def __init__(self, model: nn.Module, called: nn.Module | None = None) -> None:
        self.model = model
        self.called = model if called is None else called

    def fits(self) -> bool:
        """Whether there is memory for the whole model in each process; the processes agree on it."""
        return True

    def accumulate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Context of one micro-batch: gradients are exchanged only in the ``last`` one of a step."""
        if isinstance(self.called, DistributedDataParallel) and not last:
            return self.called.no_sync()
        return contextlib.nullcontext()

    def stepped(self) -> None:
        """Called once, after the first backward pass: how much memory the activations take is known by then."""

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Norm of all gradients together, as a scalar; the processes agree on it."""
        return torch.nn.utils.get_total_norm(gradients)

    def unsharded(self) -> contextlib.AbstractContextManager[bool]:
        """Context in which one process may call ``model``; gives False where memory does not allow it.

        All processes must enter and leave it at the same time.
        """
        return contextlib.nullcontext(True)

    def settle(self) -> None:
        """Give back what calls without a backward pass have left in memory."""

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Parameters by name, one at a time: whole, on the CPU, detached. All processes must go through them."""
        have = dict(self.model.named_parameters())
        for name in names:
            yield name, have[name].detach().cpu().contiguous().clone()


def wrap(model: nn.Module, *, find_unused_parameters: bool = False, broadcast_buffers: bool = False) -> nn.Module:
    """``model`` for this process group: itself when alone or in shards, else in DistributedDataParallel.

    Args:
        model: already on this process's device.
        find_unused_parameters: needed only if a step may not use every trainable parameter.
        broadcast_buffers: send rank 0's buffers before each forward; no shipped model needs it.
    """
    if dist.world_size() == 1 or is_split(model):
        return model
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in torch
    options: dict[str, Any] = {"find_unused_parameters": find_unused_parameters, buffers: broadcast_buffers}
    return DistributedDataParallel(model, **options)


def is_split(model: nn.Module) -> bool:
    """Whether ``model`` is in shards."""
    return isinstance(model, VLM) and model.split is not None


def spread_of(model: nn.Module, called: nn.Module | None = None) -> Spread:
    """How ``model`` is spread; ``called`` is what computes the loss of a copy, see :class:`Spread`."""
    if isinstance(model, VLM) and model.split is not None:
        found: Spread = model.split
        return found
    return Spread(model, called)
