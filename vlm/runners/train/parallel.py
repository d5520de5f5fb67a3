"""Data parallelism, and activation checkpointing."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vlm.common import dist
from vlm.common.errors import ConfigError
from vlm.models.layer_hooks import checkpointed, hooks_of
from vlm.models.protocols import NamesLayers

log = logging.getLogger(__name__)

CHECKPOINTING = ("none", "torch", "fairscale", "fairscale_offload")  # choices of ``run.activation_checkpointing``


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


def checkpointable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The repeated layers of a model: what its modules name themselves, else the items of lists of equal modules.

    A module names its own by a method ``checkpointable_modules() -> list[nn.Module]``.
    """
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") or not outer for outer in inside):
            continue
        if isinstance(module, NamesLayers):
            chosen = {id(m) for m in module.checkpointable_modules()}
            inside.append(name)
            yield from ((n, m) for n, m in model.get_submodule(name).named_modules(prefix=name) if id(m) in chosen)
            continue
        children = list(module.children())
        is_list = isinstance(module, nn.ModuleList | nn.Sequential)
        if is_list and len(children) > 1 and len({type(c) for c in children}) == 1:
            inside.append(name)
            yield from ((f"{name}.{i}", child) for i, child in enumerate(children))


def checkpoint_activations(model: nn.Module, choice: str) -> int:
    """Recompute the repeated layers in backward instead of keeping their activations.

    Keys of the state dict stay as they are. A layer through which no gradient flows runs as before.

    Args:
        model: the unwrapped model.
        choice: ``none``; ``torch``; ``fairscale``; ``fairscale_offload`` (also moves the kept inputs to host memory).

    Returns:
        number of layers treated.

    Raises:
        ConfigError: unknown choice, or fairscale is not installed.
    """
    if choice not in CHECKPOINTING:
        raise ConfigError(f"run.activation_checkpointing={choice!r} (allowed: {', '.join(CHECKPOINTING)})")
    if choice == "none":
        return 0
    recompute = checkpointed if choice == "torch" else _fairscale(offload=choice == "fairscale_offload")
    layers = [module for _, module in checkpointable_modules(model)]
    for layer in layers:
        hooks_of(layer).recompute = recompute
    log.info("activation checkpointing (%s) on %d layers", choice, len(layers))
    return len(layers)


class _Call(nn.Module):
    """A function as the module that fairscale wants."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Like the function."""
        return self.run(*args, **kwargs)


def _fairscale(offload: bool) -> Callable[..., Any]:
    try:
        from fairscale.nn.checkpoint import checkpoint_wrapper
    except ModuleNotFoundError as error:
        raise ConfigError(
            "run.activation_checkpointing asks for fairscale, which is not installed",
            fix="pip install fairscale, or set run.activation_checkpointing=torch",
        ) from error
    return lambda run, *args, **kwargs: checkpoint_wrapper(_Call(run), offload_to_cpu=offload)(*args, **kwargs)
