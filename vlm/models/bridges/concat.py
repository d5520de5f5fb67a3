"""Joining neighbouring visual tokens into one wider token (arXiv:2310.09478)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vlm.common.bounds import Count
from vlm.common.errors import ConfigError
from vlm.common.registry import register_bridge
from vlm.common.types import Features


@register_bridge("concat")
class Concat(nn.Module):
    """Joins ``group`` consecutive tokens in raster order (patches of one row, not a square) into one wide token."""

    @dataclass
    class Config:
        """Options of ``bridge: {name: concat}``. Example: ``bridge: [{name: concat, group: 4}, {name: linear}]``"""

        group: Count = 4
        drop_cls: bool = True

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = in_dim * config.group

    def num_tokens(self, in_tokens: int) -> int:
        """Tokens per frame that leave the bridge. Raises ConfigError: the tokens do not divide into groups."""
        patches = in_tokens - int(self.config.drop_cls)
        if patches % self.config.group:
            raise ConfigError(
                f"model.bridge concat: {patches} tokens do not divide into groups of {self.config.group}",
                fix="choose another group, drop_cls or image_size",
            )
        return patches // self.config.group

    def forward(self, features: Features) -> Features:
        """``[n, f, v, d]`` -> ``[n, f, (v - drop_cls) / group, group * d]``."""
        tokens = features.tokens[:, :, 1:] if self.config.drop_cls else features.tokens
        n, f, _, d = tokens.shape
        count = self.num_tokens(features.tokens.shape[2])
        return Features(tokens.reshape(n, f, count, self.config.group * d))
