"""Gated cross-attention before decoder layers, as in arXiv:2204.14198, section 2.2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.bounds import Count, Natural
from vlm.common.errors import ConfigError
from vlm.common.registry import register_insert
from vlm.models.attention import attend, feed_forward
from vlm.models.inserts.base import Insert, InsertData, layer_numbers, stacked
from vlm.models.inserts.media_mask import MediaMask, media_mask, media_masks
from vlm.models.layer_hooks import zero_of
from vlm.models.lora import LoraOptions, inject_lora


class MaskedCrossAttention(nn.Module):
    """Text attends to media tokens. State-dict keys: ``norm.*``, ``to_q``, ``to_kv``, ``to_out`` (no biases)."""

    def __init__(self, width: int, media_width: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = dim_head * heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor, media: Tensor, allowed: Tensor | None, even: Tensor | None = None) -> Tensor:
        """``hidden [b, s, d]``, ``media [b, m, e]`` -> ``[b, s, d]``, zero where nothing is allowed.

        ``allowed [b, s, m]`` None allows all; positions of ``even [b, s]`` attend to all allowed tokens uniformly.
        """
        query = self.to_q(self.norm(hidden))
        return self.to_out(self._mixed(query, self.to_kv(media), allowed, even))

    def look(self, hidden: Tensor, data: InsertData, masks: Sequence[MediaMask]) -> Tensor:
        """``hidden [b, s, d]`` -> ``[b, s, d]``, zero outside ``masks``; keys and values are computed once a request.

        No gradient reaches the media.
        """
        keys = data.from_shared(self, lambda own: self.to_kv(own.shared["media"]), stacked)  # [n, k, 2 * inner]
        query = self.to_q(self.norm(hidden))
        rows = query.flatten(0, 1)
        mixed = torch.zeros_like(rows)
        for mask in masks:
            own = rows.unflatten(0, (mask.rows, -1)) if mask.places is None else rows[mask.places]
            own = self._mixed(own, mask.of(keys), mask.allowed, mask.even)
            if mask.places is None:
                mixed = own
            else:
                mixed[mask.places] = own
        return self.to_out(mixed.view_as(query))

    def _mixed(self, query: Tensor, keys: Tensor, allowed: Tensor | None, even: Tensor | None) -> Tensor:
        """``query [b, s, inner]``, keys and values together ``[b, m, 2 * inner]`` -> ``[b, s, inner]``."""
        if even is not None:
            query = query.masked_fill(even[..., None], 0)
        key, value = keys.chunk(2, dim=-1)
        if allowed is None:
            return attend(query, key, value, self.heads)
        nothing = ~allowed.any(2, keepdim=True)
        mixed = attend(query, key, value, self.heads, (allowed | nothing)[:, None])
        return mixed.masked_fill(nothing, 0)


class GatedBlock(nn.Module):
    """``x += tanh(attn_gate) attn(x, media); x += tanh(ff_gate) ff(x)``; both gates start at 0, so nothing changes.

    State-dict keys: ``attn_gate [1]``, ``ff_gate [1]``, ``attn.*``, ``ff.0.*`` (norm), ``ff.1.weight``,
    ``ff.3.weight``.
    """

    def __init__(self, width: int, media_width: int, dim_head: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.attn = MaskedCrossAttention(width, media_width, dim_head, heads)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = feed_forward(width, ff_mult)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, data: InsertData) -> Tensor:
        """``[b, s, d]`` -> ``[b, s, d]``; ``data`` as for :func:`media_mask`, with media."""
        if torch.is_grad_enabled():
            mask = data.once("media_mask", media_mask)
            update = None if mask is None else self.attn(hidden, mask.of(data.shared["media"]), mask.allowed, mask.even)
        else:
            masks = data.once("media_masks", media_masks)
            update = self.attn.look(hidden, data, masks) if masks else None
        if update is not None:
            hidden = hidden + (update * self.attn_gate.tanh()).to(hidden.dtype)
        elif torch.is_grad_enabled():
            hidden = hidden + zero_of([*self.attn.parameters(), self.attn_gate])
        return hidden + (self.ff(hidden) * self.ff_gate.tanh()).to(hidden.dtype)


@register_insert("gated_xattn")
class GatedCrossAttention(Insert):
    """A :class:`GatedBlock` before every ``every``-th decoder layer; reads what the fusion ``cross_attn`` provides.

    Positions of samples without media pass unchanged, feed-forward included.
    """

    @dataclass
    class Config:
        """Options of ``inserts: [{name: gated_xattn}]``; ``first`` null means layer ``every - 1``.

        Example: ``inserts: [{name: gated_xattn, every: 4}]``
        """

        every: Count = 4
        first: Natural | None = None
        dim_head: Count = 64
        heads: Count = 8
        ff_mult: Count = 4
        lora: LoraOptions | None = None

    needs_data = True
    reads = ("location", "first", "last")

    def __init__(self, config: Config, llm_dim: int, num_layers: int, visual_dim: int | None) -> None:
        super().__init__()
        self.config = config
        if visual_dim is None:
            raise ConfigError("model.inserts gated_xattn attends to media, but model.vision is null")
        first = config.every - 1 if config.first is None else config.first
        for number in layer_numbers(num_layers, config.every, first, "gated_xattn"):
            self.layers[str(number)] = GatedBlock(llm_dim, visual_dim, config.dim_head, config.heads, config.ff_mult)
        if config.lora is not None:
            inject_lora(self.layers, config.lora)

    def before(self, module: Any, hidden: Tensor, data: InsertData | None) -> Tensor:
        """The block's output for samples with media; ``hidden`` unchanged for the others."""
        if data is None or data.shared["media"] is None:
            return hidden
        if data.shared["all"]:
            return module(hidden, data)
        active = data.tokens["last"] >= data.tokens["first"]
        return torch.where(active[..., None], module(hidden, data), hidden)
