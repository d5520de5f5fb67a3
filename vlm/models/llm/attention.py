"""The attention that transformers' classes call: it knows packed rows, and blocks of tokens that see one another.

Two names are registered with transformers: ``ATTENTION`` computes by SDPA, ``OWN_ATTENTION`` by the plain function of
the family's own module, for families that cap their scores or add sinks. transformers builds the mask of each kind of
layer (full, window, chunks); the mask functions here put it on the samples of a packed row and open the blocks in it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.errors import ConfigError
from vlm.models.layer_hooks import Layout, current_layout
from vlm.models.llm.slots import SlotLayout
from vlm.models.precision import device_kind

ATTENTION = "vlm_sdpa"
"""Name under which :func:`attention` and :func:`packed_mask` are known to transformers."""
OWN_ATTENTION = "vlm_eager"
"""Name under which :func:`own_attention` and :func:`packed_additive_mask` are known to transformers."""


@dataclass
class _Blocks:
    numbers: Tensor  # ``[b, L]``, or ``[samples, longest]`` of a packed row
    masks: int = 0  # masks that have been built with them


_blocks: ContextVar[_Blocks | None] = ContextVar("blocks", default=None)


@contextlib.contextmanager
def seeing(numbers: Tensor | None, name: str) -> Iterator[None]:
    """Within the block, tokens with the same number > 0 see one another in both directions.

    Args:
        numbers: ``[b, L]``, or None: all causal. Of a packed row ``[samples, longest]``, 0 at padding.
        name: of the model's class, for the error.

    Raises:
        ConfigError: the class built no mask by transformers' interface, so that the tokens saw the past only.
    """
    blocks = None if numbers is None else _Blocks(numbers)
    token = _blocks.set(blocks)
    try:
        yield
    finally:
        _blocks.reset(token)
    if blocks is not None and not blocks.masks:
        raise only_causal(name)


def only_causal(name: str) -> ConfigError:
    """The error for a class of transformers whose tokens cannot see what follows them."""
    return ConfigError(
        f"model.llm: {name} of transformers builds its attention masks by itself, so that tokens before an answer "
        "cannot see one another in both directions",
        fix="set model.fusion.attention to causal, or use an LLM of another family (Gemma, LLaMA, Qwen, ...)",
    )


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """SDPA for transformers; within :func:`~vlm.models.layer_hooks.laid_out` it works on a packed row.

    ``query [b, heads, s, d]``, ``key`` and ``value [b, kv_heads, s, d]`` -> ``[b, s, heads, d]``, and None for weights.
    """
    return _attend(_sdpa, module, (query, key, value), attention_mask, kwargs)


def _sdpa(*states: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(*states, **kwargs)


def own_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """As :func:`attention`, by the plain function of the module's family."""
    function = plain_attention_of(type(module))
    assert function is not None
    return _attend(function, module, (query, key, value), attention_mask, kwargs)


def plain_attention_of(family: type) -> Callable[..., Any] | None:
    """The attention function that a family's module of transformers defines for itself, if it does."""
    found: Callable[..., Any] | None = vars(sys.modules[family.__module__]).get("eager_attention_forward")
    return found


def _attend(
    function: Callable[..., Any],
    module: nn.Module,
    states: tuple[Tensor, Tensor, Tensor],
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Any]:
    layout = current_layout()
    if layout is None:
        return function(module, *states, attention_mask, **kwargs)
    if isinstance(layout, SlotLayout):
        kwargs["is_causal"] = False
        own = None if function is _sdpa else function
        return layout.attend(own, module, states, attention_mask, kwargs), None
    layout.calls += 1
    kwargs["is_causal"] = attention_mask is None
    # short bfloat16 rows are slower than float32 ones on a CPU
    query = states[0]
    kind = query.device.type
    dtype = torch.float32 if device_kind(query) == "cpu" else query.dtype
    off = kind != "meta" and dtype is not query.dtype  # a cast that autocast would undo
    with torch.autocast(kind, enabled=False) if off else contextlib.nullcontext():
        q, k, v = (_spread(t, layout).to(dtype) for t in states)
        out, _ = function(module, q, k, v, attention_mask, **kwargs)
    return out.flatten(0, 1).index_select(0, layout.scatter)[None].to(query.dtype), None


def packed_mask(batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> Tensor | None:
    """transformers' mask for SDPA, or that of each sample ``[1 or samples, 1, longest, longest]`` of a packed row.

    None where plain causal attention is meant: padding on the right needs no mask.
    """
    from transformers.masking_utils import sdpa_mask

    if isinstance(layout := current_layout(), SlotLayout):
        return _slot_mask(layout, kwargs)
    return sdpa_mask(**_arranged(batch_size, q_length, kv_length, kwargs))


def packed_additive_mask(batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> Tensor | None:
    """As :func:`packed_mask`: 0 where a token is seen, else the least number of ``dtype``; never None."""
    from transformers.masking_utils import eager_mask

    if isinstance(layout := current_layout(), SlotLayout):
        seen, dtype = _slot_mask(layout, kwargs), kwargs.get("dtype", torch.float32)
        seen = layout.mask(None) if seen is None else seen
        return torch.zeros((), dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    return eager_mask(**_arranged(batch_size, q_length, kv_length, kwargs))


def _slot_mask(layout: SlotLayout, kwargs: dict[str, Any]) -> Tensor | None:
    """``[R, 1, q, n]`` of the rows of a call; None where everything before is meant."""
    from transformers.masking_utils import causal_mask_function

    function = kwargs.get("mask_function", causal_mask_function)
    if layout.blocks is None and function is causal_mask_function:
        return None
    return layout.mask(function)


def _arranged(batch_size: int, q_length: int, kv_length: int, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a mask function of transformers, for the samples of a packed row and with blocks."""
    from transformers.masking_utils import or_masks

    layout, blocks = current_layout(), _blocks.get()
    if isinstance(layout, Layout):
        batch_size, q_length, kv_length = 1, layout.longest, layout.longest
        kwargs |= {"attention_mask": None, "q_offset": 0, "kv_offset": 0}
    if blocks is not None:
        blocks.masks += 1
        batch_size = len(blocks.numbers)
        kwargs |= {"mask_function": or_masks(kwargs["mask_function"], _same(blocks.numbers))}
        kwargs["allow_is_causal_skip"] = False
    return {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length, **kwargs}


def _same(numbers: Tensor) -> Callable[..., Tensor]:
    """The mask function of positions that are in the same block."""

    def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = numbers[batch, query]
        return (own == numbers[batch, key]) & (own > 0)

    return same


def _spread(states: Tensor, layout: Layout) -> Tensor:
    """``[1, heads, T, d]`` -> ``[samples, heads, longest, d]``."""
    rows = states[0].transpose(0, 1).index_select(0, layout.gather)
    return rows.unflatten(0, (layout.samples, -1)).transpose(1, 2)


def register_attention() -> None:
    """Make both functions known to transformers (idempotent)."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for name, function, mask in (
        (ATTENTION, attention, packed_mask),
        (OWN_ATTENTION, own_attention, packed_additive_mask),
    ):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, mask)


def keep_out_of_graphs() -> None:
    """Let ``torch.compile`` leave both functions as they are: they look up the layout of a packed row (idempotent)."""
    from transformers import AttentionInterface

    for name, function in ((ATTENTION, attention), (OWN_ATTENTION, own_attention)):
        AttentionInterface.register(name, torch.compiler.disable(function))
