"""Learned positions of a video's frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.bounds import Count
from vlm.common.errors import DataError
from vlm.common.registry import register_bridge
from vlm.common.types import Features
from vlm.models.counting import SameCount


@register_bridge("frame_positions")
class FramePositions(nn.Module):
    """Adds a learned vector to all tokens of a frame, class token included. State-dict key: ``positions [f, d]``."""

    @dataclass
    class Config:
        """Options of ``bridge: {name: frame_positions}``.

        A single frame is an image: unchanged, or with ``images`` given the first position. ``other_counts`` is for
        videos with another number of frames: an error, the first positions (shorter videos), or interpolation.

        Example: ``bridge: [{name: frame_positions, num_frames: 8}, {name: linear}]``
        """

        num_frames: Count = 5
        images: bool = False
        other_counts: Literal["error", "first", "interpolate"] = "error"

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = in_dim
        self.positions = nn.Parameter(torch.empty(config.num_frames, in_dim))
        nn.init.trunc_normal_(self.positions, std=0.02)

    def no_weight_decay(self) -> list[str]:
        """``positions``."""
        return ["positions"]

    def num_tokens(self, in_tokens: int) -> int:
        """As many tokens as came in."""
        return in_tokens

    varies = False

    def counter(self) -> SameCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return SameCount()

    def forward(self, features: Features) -> Features:
        """``[n, f, v, d]`` -> the same shape.

        Raises DataError: a number of frames that ``other_counts`` does not allow.
        """
        frames = features.tokens.shape[1]
        if frames == 1 and not self.config.images:
            # in the graph all the same: every process needs a gradient, whatever its batch holds
            unused = self.positions.sum() * 0 if self.positions.requires_grad else 0
            return replace(features, tokens=features.tokens + unused)
        return replace(features, tokens=features.tokens + self._positions(frames)[:, None])

    def _positions(self, frames: int) -> Tensor:
        count, how = self.config.num_frames, self.config.other_counts
        if frames == count or (how == "first" and frames < count):
            return self.positions[:frames]
        if how == "interpolate":
            table = self.positions.T[None].float()
            return F.interpolate(table, size=frames, mode="linear", align_corners=True)[0].T.to(self.positions.dtype)
        fix = f"take {count} frames of each video, or set other_counts: interpolate at model.bridge frame_positions"
        raise DataError(f"a video of {frames} frames, but the model has positions for {count}", fix=fix)
