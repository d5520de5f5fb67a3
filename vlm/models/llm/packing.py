"""Running a decoder over packed rows: the samples of a row never see one another.

*In one row*, where the family allows it (:func:`can_pack`): a padded or packed batch ``[b, L]`` becomes one row
``[1, T]`` of its T real tokens. All layers but attention work token by token and need no change; attention gathers the
row into ``[samples, longest]``, attends as each sample alone would (transformers builds the mask, with the window or
the chunks of the layer) and scatters the result back.

*Apart*, for all other families (recurrent layers, position biases, attention of their own): samples of similar length
run as padded batches, which any language model understands.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlm.models.layer_hooks import Layout, current_layout

ATTENTION = "vlm_sdpa"
"""Name under which :func:`attention` and :func:`packed_mask` are known to transformers."""

PACKED_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers (``layer_types`` of transformers) whose only mixing of tokens is attention with a mask."""


def pack(segments: Tensor, position_ids: Tensor) -> tuple[Tensor, Layout]:
    """Flat indices ``[T]`` of the real tokens in ``[b * L]``, and their layout.

    ``segments [b, L]`` are 0 at padding; ``position_ids [b, L]`` restart at each segment.
    """
    flat = segments.flatten()
    index = flat.nonzero()[:, 0]
    position = position_ids.flatten()[index]
    sample = (position == 0).long().cumsum(0) - 1
    samples, longest = (torch.stack([sample[-1], position.max()]) + 1).tolist()
    scatter = sample * longest + position
    gather = torch.zeros(samples * longest, dtype=torch.long, device=flat.device)
    gather[scatter] = torch.arange(len(index), device=flat.device)
    return index, Layout(gather, scatter, samples, longest)


def apart(segments: Tensor, position_ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded batches of the samples of packed rows, the longest samples first.

    Args:
        segments: ``[b, L]``, 0 at padding.
        position_ids: ``[b, L]``, restarting at each segment.

    Yields:
        ``index [n, longest]`` into ``[b * L]``, 0 at padding, and ``real [n, longest]``, False there. No batch has
        more positions than the rows.
    """
    index, layout = pack(segments, position_ids)
    places = index[layout.gather].unflatten(0, (layout.samples, layout.longest))
    real = torch.zeros_like(layout.gather, dtype=torch.bool)
    real[layout.scatter] = True
    real = real.view_as(places)
    lengths, order = real.sum(1).sort(descending=True, stable=True)
    sizes, first = lengths.tolist(), 0
    while first < len(sizes):
        rows = order[first : first + max(1, segments.numel() // sizes[first])]
        yield places[rows, : sizes[first]], real[rows, : sizes[first]]
        first += len(rows)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """SDPA for transformers; within :func:`~vlm.models.layer_hooks.laid_out` it works on a packed row.

    ``query [b, heads, s, d]``, ``key`` and ``value [b, kv_heads, s, d]`` -> ``[b, s, heads, d]``, and None for weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layout = current_layout()
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    layout.calls += 1
    kwargs["is_causal"] = attention_mask is None
    # short bfloat16 rows are slower than float32 ones on a CPU
    kind = query.device.type
    dtype = torch.float32 if kind == "cpu" else query.dtype
    off = kind != "meta" and dtype is not query.dtype  # a cast that autocast would undo
    with torch.autocast(kind, enabled=False) if off else contextlib.nullcontext():
        q, k, v = (_spread(t, layout).to(dtype) for t in (query, key, value))
        out, _ = sdpa_attention_forward(module, q, k, v, attention_mask, **kwargs)
    return out.flatten(0, 1).index_select(0, layout.scatter)[None].to(query.dtype), None


def packed_mask(batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> Tensor | None:
    """transformers' mask for SDPA, or that of each sample ``[1, 1, longest, longest]`` of a packed row.

    None where plain causal attention is meant: padding on the right needs no mask.
    """
    from transformers.masking_utils import sdpa_mask

    layout = current_layout()
    if layout is not None:
        batch_size, q_length, kv_length = 1, layout.longest, layout.longest
        kwargs |= {"attention_mask": None, "q_offset": 0, "kv_offset": 0}
    return sdpa_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, **kwargs)


def _spread(states: Tensor, layout: Layout) -> Tensor:
    """``[1, heads, T, d]`` -> ``[samples, heads, longest, d]``."""
    rows = states[0].transpose(0, 1).index_select(0, layout.gather)
    return rows.unflatten(0, (layout.samples, -1)).transpose(1, 2)


def register_attention() -> None:
    """Make :func:`attention` known to transformers as ``ATTENTION`` (idempotent)."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, packed_mask)


def can_pack(model: Any) -> bool:
    """Whether samples of ``model`` (of transformers) can share a row: given positions, attention by the interface."""
    config = model.config.get_text_config()
    return (
        config._attn_implementation == ATTENTION
        and bool(getattr(config, "rope_parameters", None))
        and mixes_by_attention(model)
        and takes_positions(base_of(model))
    )


def base_of(model: Any) -> Any:
    """The part of a causal model below its head; some classes name it otherwise than ``base_model_prefix`` says."""
    if model.base_model is not model:
        return model.base_model
    embeddings = model.get_input_embeddings()
    return next((child for child in model.children() if any(m is embeddings for m in child.modules())), None)


def mixes_by_attention(model: Any) -> bool:
    """Whether attention with a mask is all that mixes tokens: no recurrence, no convolution."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return (
        set(kinds) <= PACKED_LAYERS
        and not model._is_stateful
        and not any(isinstance(module, nn.Conv1d) for module in model.modules())
    )


def takes_positions(model: Any) -> bool:
    """Whether positions can be given to ``model`` (of transformers, or its base)."""
    return "position_ids" in inspect.signature(model.forward).parameters
