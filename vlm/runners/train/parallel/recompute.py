"""Activation checkpointing: which layers are repeated, and how they are recomputed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from vlm.common.errors import ConfigError
from vlm.models.layer_hooks import checkpointed, hooks_of
from vlm.models.protocols import NamesLayers

log = logging.getLogger(__name__)

CHECKPOINTING = ("none", "torch", "fairscale", "fairscale_offload")  # choices of ``run.activation_checkpointing``


def checkpointable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The repeated layers of a model: what its modules name themselves, else the items of lists of equal modules.

    A module that names its own is a :class:`~vlm.models.protocols.NamesLayers`.
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
    count = 0
    for _, module in checkpointable_modules(model):
        recompute = checkpointed if choice == "torch" else _with_fairscale(choice == "fairscale_offload")
        hooks_of(module).recompute = recompute
        count += 1
    log.info("activation checkpointing (%s) on %d layers", choice, count)
    return count


def _with_fairscale(offload: bool) -> Callable[..., Any]:
    try:
        from fairscale.nn.checkpoint import checkpoint_wrapper
    except ModuleNotFoundError as error:
        raise ConfigError(
            "run.activation_checkpointing asks for fairscale, which is not installed",
            fix="pip install fairscale, or set run.activation_checkpointing=torch",
        ) from error
    return checkpoint_wrapper(_Run(), offload_to_cpu=offload)


class _Run(nn.Module):
    """A call as a module: fairscale recomputes the ``forward`` of a class, past what is set on an instance."""

    def forward(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)
