"""Q-Former of BLIP-2 (arXiv:2301.12597): learned queries that cross-attend to the image tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.bounds import Count, Depth, Dropout, Positive
from vlm.common.errors import ConfigError
from vlm.common.registry import register_bridge
from vlm.common.types import Features
from vlm.models.counting import FixedCount


@register_bridge("qformer")
class QFormer(nn.Module):
    """BERT-shaped encoder over ``num_query_tokens`` queries; every ``cross_attention_freq``-th layer sees the image.

    State-dict keys: ``query_tokens`` and ``qformer.*`` (transformers' ``Blip2QFormerModel``).
    """

    @dataclass
    class Config:
        """Options of ``bridge: {name: qformer}``; the defaults are BLIP-2's.

        Example: ``bridge: [{name: qformer}, {name: linear}]``
        """

        num_query_tokens: Count = 32
        hidden_size: Count = 768
        num_hidden_layers: Depth = 12
        num_attention_heads: Count = 12
        intermediate_size: Count = 3072
        cross_attention_freq: Count = 2
        layer_norm_eps: Positive = 1e-12
        dropout: Dropout = 0.1

        def __post_init__(self) -> None:
            """Raises ConfigError for a width that does not divide into the heads."""
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"hidden_size is {self.hidden_size}, expected a multiple of num_attention_heads, "
                    f"{self.num_attention_heads}"
                )

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        self.config = config
        same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
        sizes: dict[str, Any] = {name: getattr(config, name) for name in same} | {"attn_implementation": "sdpa"}
        inner = Blip2QFormerConfig(
            **sizes,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            cross_attention_frequency=config.cross_attention_freq,
            encoder_hidden_size=in_dim,
        )
        self.qformer = Blip2QFormerModel(inner)
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, config.hidden_size))
        nn.init.normal_(self.query_tokens, std=inner.initializer_range)
        self.out_dim = config.hidden_size

    def num_tokens(self, in_tokens: int) -> int:
        """``num_query_tokens``, whatever enters."""
        return self.config.num_query_tokens

    varies = False

    def counter(self) -> FixedCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return FixedCount(self.num_tokens(0))

    def forward(self, features: Features) -> Features:
        """``tokens [n, f, v, in_dim]`` (class token included) -> ``[n, f, num_query_tokens, hidden_size]``."""
        image = features.tokens.flatten(0, 1)
        mask: Tensor | None = None if features.mask is None else features.mask.flatten(0, 1).long()
        out = self.qformer(
            query_embeds=self.query_tokens.expand(len(image), -1, -1),
            encoder_hidden_states=image,
            encoder_attention_mask=mask,
        ).last_hidden_state
        return Features(out.unflatten(0, features.tokens.shape[:2]))
