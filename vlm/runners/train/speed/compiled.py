"""``run.compile``: torch compiles the repeated blocks of a model, each on its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vlm.common.errors import ConfigError
from vlm.models.layer_hooks import LayerHooks, TrimmedMLP, hooks_of
from vlm.models.llm.attention import keep_out_of_graphs
from vlm.models.llm.compiled import compiler_errors
from vlm.runners.train.parallel.recompute import checkpointable_modules

log = logging.getLogger(__name__)


class CompiledBlock:
    """Takes the place of a block's ``forward`` within its hooks.

    A block that is recomputed in the backward pass runs as it is: torch may choose another graph for the second time,
    which keeps other tensors. So a frozen encoder is compiled in any case.
    """

    def __init__(self, hooks: LayerHooks) -> None:
        self.hooks = hooks
        self.forward = hooks.forward
        self.compiled: Callable[..., Any] = torch.compile(hooks.forward, dynamic=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As ``forward``."""
        recomputed = self.hooks.recompute is not None and torch.is_grad_enabled()
        return (self.forward if recomputed else self.compiled)(*args, **kwargs)


def compile_model(model: nn.Module, device: torch.device) -> int:
    """Compile the repeated blocks of ``model`` in place, for lengths that vary; before it is sharded or wrapped.

    What works on a block stays outside the compiled part and keeps its order: inserts, recomputation, the layout of a
    packed row. Blocks of one kind share their graphs. The attention of the language model, which looks the layout up,
    and the last feed-forward layer, which leaves rows out, run between graphs. A second call does nothing.

    Returns:
        number of blocks.

    Raises:
        ConfigError: torch cannot compile here, e.g. without a C++ compiler.
    """
    _try_compiler(device)
    torch._dynamo.config.optimize_ddp = False  # it would look for buckets of DDP within each block
    keep_out_of_graphs()
    count = 0
    for _, block in checkpointable_modules(model):
        hooks = hooks_of(block)
        if isinstance(hooks.forward, CompiledBlock):
            continue
        for child in block.children():
            trimmed = vars(child).get("forward")
            if isinstance(trimmed, TrimmedMLP):
                vars(child)["forward"] = torch.compiler.disable(trimmed)
        hooks.forward = CompiledBlock(hooks)
        count += 1
    log.info("torch.compile on %d blocks: the first steps take longer", count)
    return count


def _try_compiler(device: torch.device) -> None:
    try:
        torch.compile(_doubled)(torch.ones(16, device=device))
    except compiler_errors() as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"run.compile=true, but torch cannot compile for {device.type} here ({reason:.200})",
            fix="install a C++ compiler (g++) that torch finds, or set run.compile=false",
        ) from error


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x + x
