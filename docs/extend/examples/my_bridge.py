"""A bridge: a linear projection with a sigmoid gate."""

from dataclasses import dataclass

from torch import nn

from vlm import register_bridge
from vlm.common.types import Features


@register_bridge("gated_linear")
class GatedLinear(nn.Module):
    """``gain * value(x) * sigmoid(gate(x))`` in the width of the LLM."""

    @dataclass
    class Config:
        """Options of ``bridge: [{name: gated_linear}]``."""

        gain: float = 1.0

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config, self.out_dim = config, llm_dim
        self.value, self.gate = nn.Linear(in_dim, llm_dim), nn.Linear(in_dim, llm_dim)

    def num_tokens(self, in_tokens: int) -> int:
        """Tokens out for tokens in."""
        return in_tokens

    def forward(self, features: Features) -> Features:
        """``[n, f, v, in_dim]`` -> ``[n, f, v, llm_dim]``."""
        x = features.tokens
        return Features(self.config.gain * self.value(x) * self.gate(x).sigmoid(), features.mask)
