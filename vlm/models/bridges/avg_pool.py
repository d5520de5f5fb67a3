"""Fewer tokens by averaging neighbours (arXiv:2503.19786, section 2.1), or by resizing (arXiv:2408.03326)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import nn

from vlm.common.bounds import Count
from vlm.common.registry import register_bridge
from vlm.common.types import Features
from vlm.models.bridges.grid import Divided, GridCount, as_images, count, from_images


@dataclass(frozen=True)
class RoundedUp:
    """Grids ``factor`` times smaller, rounded up."""

    factor: int

    def __call__(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns that leave."""
        return -(-rows // self.factor), -(-columns // self.factor)


@register_bridge("avg_pool")
class AvgPool(nn.Module):
    """A grid of tokens that is ``factor`` times smaller in both directions. No parameters."""

    @dataclass
    class Config:
        """Options of ``bridge: {name: avg_pool}``.

        ``average`` takes the mean of each square, into which rows and columns must divide; ``bilinear`` resizes the
        grid without smoothing, rounding up.

        Example: ``bridge: [{name: avg_pool, factor: 4}, {name: mlp, depth: 1, norm: rms}]``
        """

        factor: Count = 2
        mode: Literal["average", "bilinear"] = "average"

    varies = False

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.rule = Divided(config.factor, "avg_pool") if config.mode == "average" else RoundedUp(config.factor)
        self.out_dim = in_dim

    def num_tokens(self, in_tokens: int) -> int:
        """Tokens of a square of ``in_tokens``. Raises ConfigError: they are not a square, or do not divide."""
        return count(self.rule, in_tokens)

    def counter(self) -> GridCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return GridCount(self.rule)

    def forward(self, features: Features) -> Features:
        """``[n, f, v, d]`` -> ``[n, f, num_tokens(v), d]``. Raises ConfigError: as :meth:`num_tokens`."""
        maps = as_images(features)
        size = self.rule(*maps.shape[-2:])
        if self.config.mode == "average":
            return from_images(F.avg_pool2d(maps, self.config.factor), features)
        return from_images(F.interpolate(maps, size=size, mode="bilinear"), features)
