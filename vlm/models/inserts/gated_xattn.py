"""Gated cross-attention before decoder layers, as in arXiv:2204.14198, section 2.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.bounds import Count, Natural
from vlm.common.errors import ConfigError
from vlm.common.registry import register_insert
from vlm.models.attention import attend, feed_forward
from vlm.models.inserts.base import Insert, InsertData, layer_numbers
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
        if even is not None:
            query = query.masked_fill(even[..., None], 0)
        key, value = self.to_kv(media).chunk(2, dim=-1)
        if allowed is None:
            return self.to_out(attend(query, key, value, self.heads))
        nothing = ~allowed.any(2, keepdim=True)
        mixed = attend(query, key, value, self.heads, (allowed | nothing)[:, None])
        return self.to_out(mixed.masked_fill(nothing, 0))


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

    def forward(self, hidden: Tensor, inputs: CrossAttentionInputs | None) -> Tensor:
        """``[b, s, d]`` -> ``[b, s, d]``; ``inputs`` None: no position attends to a medium."""
        if inputs is not None:
            update = self.attn(hidden, inputs.media, inputs.allowed, inputs.even)
            hidden = hidden + (update * self.attn_gate.tanh()).to(hidden.dtype)
        return hidden + (self.ff(hidden) * self.ff_gate.tanh()).to(hidden.dtype)


@dataclass
class CrossAttentionInputs:
    """Arguments of :class:`MaskedCrossAttention`: media ``[b, m, e]``, allowed ``[b, s, m]``, even ``[b, s]``."""

    media: Tensor
    allowed: Tensor
    even: Tensor | None


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
        inputs = media_mask(data)
        if data.shared["all"]:
            return module(hidden, inputs)
        active = data.tokens["last"] >= data.tokens["first"]
        return torch.where(active[..., None], module(hidden, inputs), hidden)


def media_mask(data: InsertData) -> CrossAttentionInputs | None:
    """Media and masks for the positions ``[b, s]`` of a call; None if none of them attends to a medium.

    Args:
        data: ``tokens`` location, first, last ``[b, s]`` (numbers of media) and ``shared`` media ``[n, k, e]``, real
            ``[n, k]`` or None, immediate, evenly, as :class:`~vlm.models.fusion.cross_attn.CrossAttention` gives them.
    """
    location, first, last = (data.tokens[name] for name in ("location", "first", "last"))
    media, real = data.shared["media"], data.shared["real"]
    immediate, evenly = data.shared["immediate"], data.shared["evenly"]
    has_media = last >= first
    attends = has_media if evenly and not immediate else location >= 0
    if not bool(attends.any()):
        return None
    number, exists = _media_of_rows(first, last, len(media))
    n = number[:, None]  # [b, 1, m], against [b, s, 1]
    own = exists[:, None] & (n >= first[..., None]) & (n <= last[..., None])
    allowed = own & ((n == location[..., None]) if immediate else (n <= location[..., None]))
    even = None
    if evenly:  # positions whose medium is missing attend to all of their sample's
        even = has_media & attends & ~allowed.any(2)
        allowed = allowed | (even[..., None] & own)
    allowed = allowed.repeat_interleave(media.shape[1], 2)  # [b, s, m * k]
    if real is not None:
        allowed = allowed & real[number].flatten(1)[:, None]
    return CrossAttentionInputs(media[number].flatten(1, 2), allowed, even)


def _media_of_rows(first: Tensor, last: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Numbers ``[b, m]`` of the media of each row, and ``[b, m]`` whether they exist (a row with fewer is filled up).

    ``first`` and ``last`` are ``[b, s]``, the media of each position's sample; ``count`` is the number of all media.
    """
    low = torch.where(last >= first, first, count).amin(1)
    most = max(1, int((last.amax(1) - low + 1).amax()))
    number = low[:, None] + torch.arange(most, device=low.device)
    return number.clamp(max=count - 1), number < count
