"""A norm, squares of neighbouring tokens joined, and an MLP (arXiv:2409.12191, section 2.1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from torch import nn

from vlm.common.bounds import Count, Positive
from vlm.common.registry import register_bridge
from vlm.common.types import Features
from vlm.models.bridges.grid import Divided, GridCount, count, squares
from vlm.models.bridges.mlp import NORMS


@register_bridge("patch_merger")
class PatchMerger(nn.Module):
    """Norms each token, joins squares of ``size x size``, and applies two linear layers with a GELU between.

    State-dict keys: ``ln_q.*``, ``mlp.0.*``, ``mlp.2.*`` (the published names).
    """

    @dataclass
    class Config:
        """Options of ``bridge: {name: patch_merger}``; ``out_dim`` null means the LLM's width.

        Example: ``bridge: [{name: patch_merger, size: 2, norm: rms}]``
        """

        size: Count = 2
        norm: Literal["layer", "rms"] = "layer"
        norm_eps: Positive = 1e-6
        out_dim: Count | None = None

    varies = False

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.rule = Divided(config.size, "patch_merger")
        self.out_dim = config.out_dim or llm_dim
        wide = in_dim * config.size**2
        self.ln_q = NORMS[config.norm](in_dim, eps=config.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, self.out_dim))

    def num_tokens(self, in_tokens: int) -> int:
        """``in_tokens / size^2``. Raises ConfigError: they are not a square, or do not divide."""
        return count(self.rule, in_tokens)

    def counter(self) -> GridCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return GridCount(self.rule)

    def forward(self, features: Features) -> Features:
        """``[n, f, v, in_dim]`` -> ``[n, f, v / size^2, out_dim]``. Raises ConfigError: as :meth:`num_tokens`."""
        joined = squares(dataclasses.replace(features, tokens=self.ln_q(features.tokens)), self.rule)
        return dataclasses.replace(joined, tokens=self.mlp(joined.tokens))
