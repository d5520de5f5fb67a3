"""Running a decoder over real tokens only.

A padded batch ``[b, L]`` becomes one row ``[1, T]`` of its T real tokens. All layers but attention work token by token
and need no change; attention gathers the row into ``[samples, longest]``, runs plain causal attention (padding on the
right needs no mask) and scatters the result back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ATTENTION = "vlm_sdpa"
"""Name under which :func:`attention` is known to transformers."""


@dataclass
class Layout:
    """Positions of the tokens of a packed row."""

    gather: Tensor  # ``[samples * longest]`` index in the row of the token at each place (0 at padding)
    scatter: Tensor  # ``[T]`` place of each token
    samples: int  # number of samples
    keep: Tensor | None = None  # ``[t]`` tokens whose hidden states are read; None: all


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
    return index, Layout(gather, scatter, samples)


def attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """SDPA for transformers; with a ``layout`` among its arguments it works on a packed row and ignores ``mask``.

    ``query [b, heads, s, d]``, ``key`` and ``value [b, kv_heads, s, d]`` -> ``[b, s, heads, d]``, and None for weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layout: Layout | None = kwargs.pop("layout", None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    kwargs["is_causal"] = True
    # short bfloat16 rows are slower than float32 ones on a CPU
    kind = query.device.type
    dtype = torch.float32 if kind == "cpu" else query.dtype
    with torch.autocast(kind, enabled=dtype is query.dtype and torch.is_autocast_enabled(kind)):
        q, k, v = (_spread(t, layout).to(dtype) for t in (query, key, value))
        out, _ = sdpa_attention_forward(module, q, k, v, None, **kwargs)
    return out.flatten(0, 1).index_select(0, layout.scatter)[None].to(query.dtype), None


def _spread(states: Tensor, layout: Layout) -> Tensor:
    """``[1, heads, T, d]`` -> ``[samples, heads, longest, d]``."""
    rows = states[0].transpose(0, 1).index_select(0, layout.gather)
    return rows.unflatten(0, (layout.samples, -1)).transpose(1, 2)


def register_attention() -> None:
    """Make :func:`attention` known to transformers as ``ATTENTION`` (idempotent)."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def can_pack(model: Any, longest: int) -> bool:
    """Whether ``model`` (of transformers) mixes tokens only in full attention through the attention interface."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) or longest
    return (
        config._attn_implementation == ATTENTION
        and bool(getattr(config, "rope_parameters", None))
        and kinds <= {"full_attention", "sliding_attention"}
        and longest <= window
    )
