"""The C-Abstractor: convolutions around an adaptive average pool (arXiv:2312.06742, section 3.2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from vlm.common.bounds import Count, Depth
from vlm.common.registry import register_bridge
from vlm.common.types import Features, MediumShape
from vlm.models.bridges.grid import as_images, from_images


@dataclass(frozen=True)
class FixedGrid:
    """Always a square of ``side x side`` tokens of each frame."""

    side: int

    def __call__(self, shape: MediumShape) -> MediumShape:
        """``shape`` with that number of tokens in that grid."""
        return dataclasses.replace(shape, tokens=self.side**2, grid=(self.side, self.side))


@register_bridge("conv_abstractor")
class ConvAbstractor(nn.Module):
    """RegNet blocks, an average pool to ``side x side`` tokens whatever enters, RegNet blocks, and an MLP with SiLU.

    State-dict keys: ``net.0.*`` and ``net.1.*`` (timm's ``RegStage``), ``readout.<2i>.*``.
    """

    @dataclass
    class Config:
        """Options of ``bridge: {name: conv_abstractor}``; the defaults are those of the published 7B model.

        ``out_dim`` null means the LLM's width.

        Example: ``bridge: [{name: conv_abstractor, side: 12}]``
        """

        side: Count = 12
        width: Count = 1024
        depth: Depth = 3  # blocks before the pool, and after it
        mlp_depth: Depth = 2
        out_dim: Count | None = None

    varies = False

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        from timm.layers import LayerNorm2d
        from timm.models.regnet import RegStage

        self.config = config
        self.out_dim = config.out_dim or llm_dim
        options: dict[str, Any] = {"depth": config.depth, "out_chs": config.width, "stride": 1, "dilation": 1}
        stage = partial(RegStage, **options, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
        self.net = nn.ModuleList([stage(in_chs=in_dim), stage(in_chs=config.width)])
        widths = [config.width] + [self.out_dim] * config.mlp_depth
        layers = [layer for a, b in pairwise(widths) for layer in (nn.SiLU(), nn.Linear(a, b))]
        self.readout = nn.Sequential(*layers[1:])

    def num_tokens(self, in_tokens: int) -> int:
        """``side^2``, whatever enters."""
        return self.config.side**2

    def counter(self) -> FixedGrid:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return FixedGrid(self.config.side)

    def forward(self, features: Features) -> Features:
        """``[n, f, v, in_dim]`` -> ``[n, f, side^2, out_dim]``. Raises ConfigError: the tokens lie in no grid."""
        before, after = self.net
        maps = after(adaptive_avg_pool2d(before(as_images(features)), self.config.side))
        pooled = from_images(maps, features)
        return dataclasses.replace(pooled, tokens=self.readout(pooled.tokens))
