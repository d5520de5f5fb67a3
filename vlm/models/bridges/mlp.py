"""A small MLP, as in LLaVA-1.5 (arXiv:2310.03744)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn
from transformers.activations import ACT2FN

from vlm.common.bounds import Count, Depth, Dropout, Positive
from vlm.common.registry import register_bridge
from vlm.common.types import Features
from vlm.models.counting import SameCount

NORMS: dict[str, Any] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


@register_bridge("mlp")
class MLP(nn.Module):
    """``depth`` linear layers with an activation between, ending at the LLM's width.

    State-dict keys: ``layers.<2i>.*``, ``norm.*`` where the input is normed first, and ``shortcut.*``.
    """

    @dataclass
    class Config:
        """Options of ``bridge: {name: mlp}``; ``hidden_dim`` and ``out_dim`` null mean the LLM's width.

        With ``shortcut`` a linear layer of what enters is added to the MLP, whose last layer starts at zero: what
        leaves is linear at first. ``dropout`` is of the values that enter, after the norm.

        Example: ``bridge: [{name: mlp, depth: 2}]``
        """

        depth: Depth = 2
        hidden_dim: Count | None = None
        out_dim: Count | None = None
        bias: bool = True
        activation: Literal["gelu", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu"] = "gelu"
        norm: Literal["layer", "rms"] | None = None  # of the tokens that enter
        norm_eps: Positive = 1e-5
        shortcut: bool = False
        dropout: Dropout = 0.0

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.out_dim or llm_dim
        widths = [in_dim] + [config.hidden_dim or llm_dim] * (config.depth - 1) + [self.out_dim]
        layers = [
            layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b, config.bias), ACT2FN[config.activation])
        ]
        self.norm = nn.Identity() if config.norm is None else NORMS[config.norm](in_dim, eps=config.norm_eps)
        self.layers = nn.Sequential(*layers[:-1])
        self.dropout = nn.Dropout(config.dropout)
        self.shortcut = nn.Linear(in_dim, self.out_dim, config.bias) if config.shortcut else None
        if config.shortcut:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def num_tokens(self, in_tokens: int) -> int:
        """As many tokens as came in."""
        return in_tokens

    varies = False

    def counter(self) -> SameCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return SameCount()

    def first_layer(self) -> nn.Linear | None:
        """See :class:`~vlm.models.protocols.LinearAtFirst`: the shortcut, or the only layer."""
        if self.shortcut is not None or self.config.depth > 1:
            return self.shortcut
        only = self.layers[0]
        assert isinstance(only, nn.Linear)
        return only

    def entered(self, features: Features) -> Tensor:
        """See :class:`~vlm.models.protocols.LinearAtFirst`."""
        return self.norm(features.tokens)

    def forward(self, features: Features) -> Features:
        """``[n, f, v, in_dim]`` -> ``[n, f, v, out_dim]``."""
        entered = self.dropout(self.entered(features))
        tokens = self.layers(entered)
        return replace(features, tokens=tokens if self.shortcut is None else tokens + self.shortcut(entered))
