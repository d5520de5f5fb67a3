"""Perceiver resampler (arXiv:2204.14198, section 2.1; in the LLM's width arXiv:2307.02469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.bounds import Count, Depth
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_bridge
from vlm.common.types import Features
from vlm.models.attention import attend, feed_forward
from vlm.models.counting import FixedCount


class LatentAttention(nn.Module):
    """Latents attend to media tokens, and with ``latents_in_keys`` to each other. No biases but the norms'.

    State-dict keys: ``norm_media.*``, ``norm_latents.*``, ``to_q``, ``to_kv`` (keys before values), ``to_out``.
    """

    def __init__(self, media_dim: int, dim: int, config: Perceiver.Config) -> None:
        super().__init__()
        self.heads, self.latents_in_keys = config.heads, config.latents_in_keys
        inner = config.dim_head * config.heads
        self.norm_media = nn.LayerNorm(media_dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(media_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, media: Tensor, latents: Tensor, mask: Tensor | None) -> Tensor:
        """``media [n, v, e]``, ``latents [n, q, d]``, ``mask [n, v]`` bool or None -> ``[n, q, d]``."""
        latents = self.norm_latents(latents)
        media = self.norm_media(media)
        if self.latents_in_keys:
            media = torch.cat([media, latents], dim=1)
            mask = mask if mask is None else F.pad(mask, (0, latents.shape[1]), value=True)
        query = self.to_q(latents)
        key, value = self.to_kv(media).chunk(2, dim=-1)
        return self.to_out(attend(query, key, value, self.heads, None if mask is None else mask[:, None, None]))


@register_bridge("perceiver")
class Perceiver(nn.Module):
    """Learned latents that read all tokens of a medium; a video's frames are read together, as one long sequence.

    State-dict keys (those of the published modules): ``latents``, ``layers.<i>.0.*`` (attention), ``layers.<i>.1.*``
    (feed-forward), ``norm.*``, and ``frame_embs [max_num_frames, in_dim]`` where ``max_num_frames`` is set.
    """

    @dataclass
    class Config:
        """Options of ``bridge: {name: perceiver}``; the defaults are those of the first open reproduction.

        ``width`` is that of the latents and of the output: the encoder's or the LLM's (which, in the published model,
        needs ``latents_in_keys: false``). ``per_frame`` reads each frame on its own and keeps them apart.
        ``max_num_frames`` adds a learned vector to all tokens of each frame, also that of an image.

        Example: ``bridge: [{name: perceiver, num_latents: 64, width: llm, latents_in_keys: false}]``
        """

        depth: Depth = 6
        dim_head: Count = 64
        heads: Count = 8
        num_latents: Count = 64
        ff_mult: Count = 4
        latents_in_keys: bool = True
        width: Literal["vision", "llm"] = "vision"
        per_frame: bool = False
        max_num_frames: Count | None = None

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = dim = in_dim if config.width == "vision" else llm_dim
        if config.latents_in_keys and dim != in_dim:
            raise ConfigError(
                f"model.bridge perceiver: latents of width {dim} cannot be keys beside media of width {in_dim}",
                fix="set latents_in_keys: false, or width: vision",
            )
        self.latents = nn.Parameter(torch.empty(config.num_latents, dim))
        nn.init.normal_(self.latents)
        self.frame_embs: nn.Parameter | None = None
        if config.max_num_frames is not None:
            self.frame_embs = nn.Parameter(torch.randn(config.max_num_frames, in_dim))
        self.layers = nn.ModuleList(
            nn.ModuleList([LatentAttention(in_dim, dim, config), feed_forward(dim, config.ff_mult)])
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim)

    @property
    def joins_frames(self) -> bool:
        """Whether a video leaves as one frame (not with ``per_frame``)."""
        return not self.config.per_frame

    def num_tokens(self, in_tokens: int) -> int:
        """``num_latents``, per video or (``per_frame``) per frame, whatever enters."""
        return self.config.num_latents

    varies = False

    def counter(self) -> FixedCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return FixedCount(self.num_tokens(0), self.joins_frames)

    def forward(self, features: Features) -> Features:
        """``[n, f, v, in_dim]`` -> ``[n, 1, num_latents, out_dim]`` (``[n, f, ...]`` with ``per_frame``).

        Raises DataError: more frames than ``max_num_frames``.
        """
        tokens, mask = self._with_positions(features.tokens), features.mask
        frames = tokens.shape[:2] if self.config.per_frame else (len(tokens), 1)
        media = tokens.reshape(frames[0] * frames[1], -1, tokens.shape[-1])
        real = None if mask is None else mask.reshape(len(media), -1)
        latents = self.latents.expand(len(media), -1, -1)
        layers: Any = self.layers
        for attention, forward in layers:
            latents = latents + attention(media, latents, real)
            latents = latents + forward(latents)
        return Features(self.norm(latents).unflatten(0, frames))

    def _with_positions(self, tokens: Tensor) -> Tensor:
        if self.frame_embs is None:
            return tokens
        if tokens.shape[1] > len(self.frame_embs):
            raise DataError(
                f"a video of {tokens.shape[1]} frames, but the perceiver has positions for {len(self.frame_embs)}",
                fix="take fewer frames of a video, or raise max_num_frames of model.bridge perceiver and train",
            )
        return tokens + self.frame_embs[: tokens.shape[1], None]
