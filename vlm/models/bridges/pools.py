"""Fewer tokens by pooling their grid: plainly, at several scales, or between convolutions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from vlm.common.bounds import Count, Depth
from vlm.common.errors import ConfigError
from vlm.common.registry import register_bridge
from vlm.common.types import Features, MediumShape
from vlm.models.bridges.grid import Divided, GridCount, as_images, count, from_images
from vlm.models.counting import FixedCount


@dataclass(frozen=True)
class RoundedUp:
    """Grids ``factor`` times smaller, rounded up."""

    factor: int

    def __call__(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns that leave."""
        return -(-rows // self.factor), -(-columns // self.factor)


@register_bridge("avg_pool")
class AvgPool(nn.Module):
    """A grid of tokens that is ``factor`` times smaller in both directions. No parameters.

    By averages as in arXiv:2503.19786, section 2.1; resized as in arXiv:2408.03326.
    """

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


@register_bridge("pyramid_pool")
class PyramidPool(nn.Module):
    """Averages of the whole grid, of its quarters and so on: ``side^2`` tokens for each side of ``levels``.

    It is the spatial pyramid of arXiv:1406.4729, section 2.2, with averages. No parameters. Where the rows or columns
    of the grid are not a multiple of a side, neighbouring windows share some of them.
    """

    @dataclass
    class Config:
        """Options of ``bridge: {name: pyramid_pool}``: sides of the squares of windows, in the order of the tokens.

        Example: ``bridge: [{name: pyramid_pool, levels: [1, 2]}, {name: mlp}]``
        """

        levels: list[Count] = field(default_factory=lambda: [1, 2])

        def __post_init__(self) -> None:
            """Raises ConfigError: no level."""
            if not self.levels:
                raise ConfigError("model.bridge pyramid_pool: levels is empty", fix="for example levels: [1, 2]")

    varies = False

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = in_dim

    def num_tokens(self, in_tokens: int) -> int:
        """The sum of the squares of ``levels``, whatever enters."""
        return sum(side**2 for side in self.config.levels)

    def counter(self) -> FixedCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return FixedCount(self.num_tokens(0))

    def forward(self, features: Features) -> Features:
        """``[n, f, v, d]`` -> ``[n, f, num_tokens, d]``. Raises ConfigError: the tokens lie in no grid."""
        maps = as_images(features)
        pooled = [F.adaptive_avg_pool2d(maps, side).flatten(2) for side in self.config.levels]
        tokens = torch.cat(pooled, dim=2).transpose(1, 2).unflatten(0, features.tokens.shape[:2])
        return dataclasses.replace(features, tokens=tokens, mask=None, grid=None)


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

    It is the C-Abstractor of arXiv:2312.06742, section 3.2.

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
        maps = after(F.adaptive_avg_pool2d(before(as_images(features)), self.config.side))
        pooled = from_images(maps, features)
        return dataclasses.replace(pooled, tokens=self.readout(pooled.tokens))
