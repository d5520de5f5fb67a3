"""One linear projection."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from vlm.common.bounds import Count
from vlm.common.registry import register_bridge
from vlm.common.types import Features
from vlm.models.counting import SameCount


@register_bridge("linear")
class Linear(nn.Module):
    """``x W + b`` of width ``out_dim`` (null: the LLM's). State-dict keys: ``proj.{weight,bias}``."""

    @dataclass
    class Config:
        """Options of ``bridge: {name: linear}``. Example: ``bridge: [{name: linear, bias: false}]``"""

        out_dim: Count | None = None
        bias: bool = True

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.out_dim or llm_dim
        self.proj = nn.Linear(in_dim, self.out_dim, bias=config.bias)

    def num_tokens(self, in_tokens: int) -> int:
        """As many tokens as came in."""
        return in_tokens

    varies = False

    def counter(self) -> SameCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return SameCount()

    def first_layer(self) -> nn.Linear:
        """See :class:`~vlm.models.protocols.LinearAtFirst`."""
        return self.proj

    def entered(self, features: Features) -> Tensor:
        """See :class:`~vlm.models.protocols.LinearAtFirst`."""
        return features.tokens

    def forward(self, features: Features) -> Features:
        """``[n, f, v, in_dim]`` -> ``[n, f, v, out_dim]``."""
        return replace(features, tokens=self.proj(features.tokens))
