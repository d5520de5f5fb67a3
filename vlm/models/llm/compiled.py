"""``torch.compile`` of the decoder layers, for answers: one graph a layer, in which the attention is a single call."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from vlm.models.layer_hooks import TrimmedMLP, hooks_of

log = logging.getLogger(__name__)

_running: ContextVar[nn.Module | None] = ContextVar("compiled_layer", default=None)
"""The attention of the layer whose graph runs in this thread: of all layers it is the same graph."""


class CompiledForward:
    """Replaces the ``forward`` of a layer within its hooks: compiled at the first call, eager once that has failed.

    torch compiles again for other kinds of arguments (one token or several, with a mask or without), a few times at
    most: beyond ``torch._dynamo.config.recompile_limit`` it runs the layer as it is, and warns itself. Calls with a
    cache of transformers, which differs from layer to layer, and calls with gradients are never compiled.
    """

    def __init__(self, layer: nn.Module, forward: Callable[..., Any], state: list[str]) -> None:
        self.forward = forward
        self.state = state
        self.attention = next((m for m in layer.modules() if hasattr(m, "is_causal")), None)
        self.compiled: Callable[..., Any] = torch.compile(forward, dynamic=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As ``forward``."""
        cached = any(kwargs.get(name) is not None for name in ("cache", "past_key_values", "past_key_value"))
        if self.state or cached or self.attention is None or torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        token = _running.set(self.attention)
        try:
            return self.compiled(*args, **kwargs)
        except compiler_errors() as error:
            self.state.append(str(error))
            reason = str(error).strip().splitlines() or [type(error).__name__]
            log.warning("run.serving.compile: the decoder layers are not compiled (%.200s)", reason[0])
        finally:
            _running.reset(token)
        return self.forward(*args, **kwargs)


def compile_layers(llm: Any) -> int:
    """Compile the decoder layers of ``llm`` (an ``HFCausalLM``) for lengths that vary; a second call does nothing.

    What works on a layer stays outside the compiled part and keeps its order: inserts, recomputation, the layout of a
    packed row. The attention is one opaque call within it, and finds layout and cache in its context as ever. Nothing
    is compiled before a layer is first called without gradients; where torch's compiler is missing or fails, all layers
    run as they are, with one warning.

    Returns:
        The number of layers that will be compiled; 0 for a family without transformers' attention interface.
    """
    from transformers import AttentionInterface

    name = llm.model.config.get_text_config()._attn_implementation
    known = AttentionInterface()
    if name not in known:
        log.warning("run.serving.compile: this kind of language model cannot be compiled layer by layer")
        return 0
    if not isinstance(known[name], _Opaque):
        AttentionInterface.register(name, _Opaque(known[name]))
    state: list[str] = []
    count = 0
    for layer in llm.layers():
        hooks = hooks_of(layer)
        if not isinstance(hooks.forward, CompiledForward):
            _leave_out(layer)
            hooks.forward = CompiledForward(layer, hooks.forward, state)
            count += 1
    return count


class _Opaque:
    """An attention function of transformers' interface that is one node of a graph while it is compiled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.operator = _operator()

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        if torch.compiler.is_compiling():
            return self.operator(query, key, value, mask, kwargs.get("scaling"), kwargs.get("softcap")), None
        found: tuple[Tensor, Any] = self.function(module, query, key, value, mask, **kwargs)
        return found


@functools.cache
def _operator() -> Any:
    """The operator ``vlm::attend``: calls the attention function of the layer that runs."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
    ) -> Tensor:
        from transformers import AttentionInterface

        module: Any = _running.get()
        function = AttentionInterface()[module.config._attn_implementation]
        more = {} if softcap is None else {"softcap": softcap}
        out: Tensor = function(module, query, key, value, mask, scaling=scaling, dropout=0.0, **more)[0]
        return out.contiguous()

    def shaped(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        batch, heads, length, _ = query.shape
        return query.new_empty(batch, length, heads, value.shape[-1])

    schema = "(Tensor query, Tensor key, Tensor value, Tensor? mask, float? scaling, float? softcap) -> Tensor"
    made = torch.library.custom_op("vlm::attend", attend, mutates_args=(), schema=schema)
    made.register_fake(shaped)
    return made


def _leave_out(layer: nn.Module) -> None:
    """Keep the choice of rows by the layout, a context variable, out of the compiled part of ``layer``."""
    for module in layer.children():
        trimmed = module.__dict__.get("forward")
        if isinstance(trimmed, TrimmedMLP):
            module.__dict__["forward"] = torch.compiler.disable(trimmed)


def compiler_errors() -> tuple[type[Exception], ...]:
    """What torch raises where it cannot compile: no C++ compiler, or a layer that it cannot trace."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError
