"""Joining squares of neighbouring tokens into one wider token (arXiv:2404.16821, section 3.1; arXiv:2408.12637)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vlm.common.bounds import Count
from vlm.common.registry import register_bridge
from vlm.common.types import Features
from vlm.models.bridges.grid import Divided, GridCount, count, squares


@register_bridge("pixel_shuffle")
class PixelShuffle(nn.Module):
    """Joins each square of ``factor x factor`` tokens into one token, ``factor^2`` times as wide. No parameters.

    Within it the tokens follow one another row by row, as in all published models.
    """

    @dataclass
    class Config:
        """Options of ``bridge: {name: pixel_shuffle}``.

        Example: ``bridge: [{name: pixel_shuffle, factor: 4}, {name: linear, bias: false}]``
        """

        factor: Count = 2

    varies = False

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.rule = Divided(config.factor, "pixel_shuffle")
        self.out_dim = in_dim * config.factor**2

    def num_tokens(self, in_tokens: int) -> int:
        """``in_tokens / factor^2``. Raises ConfigError: they are not a square, or do not divide."""
        return count(self.rule, in_tokens)

    def counter(self) -> GridCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return GridCount(self.rule)

    def forward(self, features: Features) -> Features:
        """``[n, f, v, d]`` -> ``[n, f, v / factor^2, factor^2 * d]``. Raises ConfigError: as :meth:`num_tokens`."""
        return squares(features, self.rule)
