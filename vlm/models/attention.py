"""Pieces that the bridges and inserts with attention share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """``query [b, q, h * d]``, ``key`` and ``value [b, k, h * d]``, ``mask [b, 1 or h, 1 or q, k]`` -> as ``query``."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


def feed_forward(dim: int, mult: int) -> nn.Sequential:
    """LayerNorm, linear to ``mult * dim``, GELU, linear back; no biases but the norm's."""
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, mult * dim, bias=False), nn.GELU(), nn.Linear(mult * dim, dim, bias=False)
    )
