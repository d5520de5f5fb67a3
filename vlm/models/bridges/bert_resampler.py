"""A resampler of BERT-like layers: learned queries that attend to themselves and to the image in one attention."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.bounds import Count, Depth, Dropout, Positive
from vlm.common.errors import ConfigError
from vlm.common.registry import register_bridge
from vlm.common.types import Features
from vlm.models.attention import attend
from vlm.models.counting import FixedCount

STD = 0.02
"""Standard deviation of the initial matrices; the queries start at zero."""
PUBLISHED = {"layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
"""Values that apply if neither the composition nor a file sets them."""


@register_bridge("bert_resampler")
class BertResampler(nn.Module):
    """``num_query_tokens`` queries through post-norm layers; keys and values come from ``[queries; image]``.

    State-dict keys: ``query_tokens``, ``layers.<i>.*`` and the unused buffers ``pooler.*``, which published files hold.
    """

    @dataclass
    class Config:
        """Options of ``bridge: {name: bert_resampler}``.

        Null means: as in the file of ``weights:``. Without a file, ``hidden_size`` is the input width, norm and dropout
        are those of ``PUBLISHED``, and the rest must be set.

        Example: ``bridge: [{name: bert_resampler, num_query_tokens: 64}, {name: linear}]``
        """

        num_query_tokens: Count | None = None
        hidden_size: Count | None = None
        num_hidden_layers: Depth | None = None
        num_attention_heads: Count | None = None
        intermediate_size: Count | None = None
        layer_norm_eps: Positive | None = None
        hidden_dropout_prob: Dropout | None = None
        attention_probs_dropout_prob: Dropout | None = None

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        written = {name: value for name, value in vars(config).items() if value is not None}
        full: Any = dataclasses.replace(config, **{"hidden_size": in_dim, **PUBLISHED, **written})
        unset = [name for name, value in vars(full).items() if value is None]
        if unset:
            raise ConfigError(
                f"model.bridge bert_resampler: {', '.join(unset)} not set, and no file of model.weights has it",
                fix="set them, or give the folder of a published delta or merged model",
            )
        size, heads = full.hidden_size, full.num_attention_heads
        if size != in_dim or in_dim % heads:
            raise ConfigError(
                f"model.bridge bert_resampler: hidden_size {size} must be the input width, {in_dim}, "
                f"and a multiple of num_attention_heads, {heads}"
            )
        self.config = config
        self.out_dim = in_dim
        self.query_tokens = nn.Parameter(torch.empty(1, full.num_query_tokens, in_dim))
        self.layers = nn.ModuleList(Layer(full) for _ in range(full.num_hidden_layers))
        self.pooler = Pooler(in_dim)
        nn.init.zeros_(self.query_tokens)

    def num_tokens(self, in_tokens: int) -> int:
        """``num_query_tokens``, whatever enters."""
        return self.query_tokens.shape[1]

    varies = False

    def counter(self) -> FixedCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return FixedCount(self.num_tokens(0))

    def forward(self, features: Features) -> Features:
        """``tokens [n, f, v, in_dim]`` -> ``[n, f, num_query_tokens, hidden_size]``."""
        image = features.tokens.flatten(0, 1)
        states = self.query_tokens.expand(len(image), -1, -1)
        mask = None
        if features.mask is not None:
            seen = features.mask.flatten(0, 1)
            mask = torch.cat([seen.new_ones(len(seen), states.shape[1]), seen], dim=1)[:, None, None]
        for layer in self.layers:
            states = layer(states, image, mask)
        return Features(states.unflatten(0, features.tokens.shape[:2]))


class Layer(nn.Module):
    """Attention and MLP, each followed by residual and norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.heads: int = config.num_attention_heads
        self.attention_dropout: float = config.attention_probs_dropout_prob
        self.query, self.key, self.value = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.attention_out = nn.Linear(size, size)
        self.attention_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.up, self.down = nn.Linear(size, inner), nn.Linear(inner, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        for child in self.children():
            if isinstance(child, nn.Linear):
                nn.init.normal_(child.weight, std=STD)
                nn.init.zeros_(child.bias)

    def forward(self, states: Tensor, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """``states [b, q, d]``, ``image [b, v, d]``, ``mask [b, 1, 1, q + v]`` bool -> ``[b, q, d]``."""
        both = torch.cat([states, image.to(states.dtype)], dim=1)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = attend(self.query(states), self.key(both), self.value(both), self.heads, mask, dropout)
        out = self.attention_out(mixed)
        states = self.attention_norm(self.dropout(out) + states)
        return self.norm(self.dropout(self.down(F.gelu(self.up(states)))) + states)


class Pooler(nn.Module):
    """Weights of a layer whose output is not used; kept so that files are read and written completely."""

    weight: Tensor
    bias: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(size, size))
        self.register_buffer("bias", torch.zeros(size))
