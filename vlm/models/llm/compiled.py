"""``torch.compile`` of the decoder layers, for answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vlm.models.layer_hooks import TrimmedMLP, hooks_of
from vlm.models.llm.attention import ATTENTION, OWN_ATTENTION, attention, own_attention

log = logging.getLogger(__name__)


class CompiledForward:
    """Replaces the ``forward`` of a layer within its hooks: compiled at the first call, eager once that has failed.

    torch compiles again for other kinds of arguments (one token or several, with a mask or without), a few times at
    most: beyond ``torch._dynamo.config.recompile_limit`` it runs the layer as it is, and warns itself.
    """

    def __init__(self, forward: Callable[..., Any], state: list[str]) -> None:
        self.forward = forward
        self.state = state
        self.compiled: Callable[..., Any] = torch.compile(forward, dynamic=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As ``forward``."""
        if self.state or torch.is_grad_enabled():  # training, or a loss: activations are kept as they were
            return self.forward(*args, **kwargs)
        try:
            return self.compiled(*args, **kwargs)
        except _compiler_errors() as error:
            self.state.append(str(error))
            reason = str(error).strip().splitlines() or [type(error).__name__]
            log.warning("run.serving.compile: the decoder layers are not compiled (%.200s)", reason[0])
            return self.forward(*args, **kwargs)


def compile_layers(llm: Any) -> int:
    """Compile the decoder layers of ``llm`` (an ``HFCausalLM``) for lengths that vary; a second call does nothing.

    What works on a layer stays outside the compiled part and keeps its order: inserts, recomputation, the layout of a
    packed row. So does the attention itself, which takes the layout and the cache from its context. Nothing is compiled
    before a layer is first called without gradients; where torch's compiler is missing or fails, all layers run as they
    are, with one warning.

    Returns:
        The number of layers that will be compiled.
    """
    from transformers import AttentionInterface

    for name, function in ((ATTENTION, attention), (OWN_ATTENTION, own_attention)):
        AttentionInterface.register(name, torch.compiler.disable(function))
    state: list[str] = []
    count = 0
    for layer in llm.layers():
        hooks = hooks_of(layer)
        if not isinstance(hooks.forward, CompiledForward):
            _leave_out(layer)
            hooks.forward = CompiledForward(hooks.forward, state)
            count += 1
    return count


def _leave_out(layer: nn.Module) -> None:
    """Keep the choice of rows by the layout, a context variable, out of the compiled part of ``layer``."""
    for module in layer.children():
        trimmed = module.__dict__.get("forward")
        if isinstance(trimmed, TrimmedMLP):
            module.__dict__["forward"] = torch.compiler.disable(trimmed)


def _compiler_errors() -> tuple[type[Exception], ...]:
    """What torch raises where it cannot compile: no C++ compiler, or a layer that it cannot trace."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError
