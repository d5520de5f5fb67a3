"""Q-Former of BLIP-2 (arXiv:2301.12597): learned queries that cross-attend to the image tokens.

With ``reads_text`` it is that of arXiv:2305.06500: queries and the question about the image attend to one another, the
question has a feed-forward layer of its own, and only the queries leave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.bounds import Count, Depth, Dropout, Positive
from vlm.common.errors import ConfigError
from vlm.common.registry import register_bridge
from vlm.common.types import Features
from vlm.models.bridges.question import QuestionEmbeddings, QuestionOptions
from vlm.models.counting import FixedCount


@register_bridge("qformer")
class QFormer(nn.Module):
    """BERT-shaped encoder over ``num_query_tokens`` queries; every ``cross_attention_freq``-th layer sees the image.

    State-dict keys: ``query_tokens`` and ``qformer.*`` (transformers' ``Blip2QFormerModel``); with ``reads_text`` also
    ``text.*``.
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
        activation: str = "gelu"  # by its name in transformers
        reads_text: QuestionOptions | None = None  # null: the queries do not see the question

        def __post_init__(self) -> None:
            """Raises ConfigError for a width that does not divide into the heads."""
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"hidden_size is {self.hidden_size}, expected a multiple of num_attention_heads, "
                    f"{self.num_attention_heads}"
                )
            if isinstance(self.reads_text, Mapping):  # a stored composition
                self.reads_text = QuestionOptions(**self.reads_text)

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        self.config = config
        same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
        sizes: dict[str, Any] = {name: getattr(config, name) for name in same} | {"attn_implementation": "sdpa"}
        inner = Blip2QFormerConfig(
            **sizes,
            hidden_act=config.activation,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            cross_attention_frequency=config.cross_attention_freq,
            encoder_hidden_size=in_dim,
            use_qformer_text_input=config.reads_text is not None,
        )
        self.qformer = Blip2QFormerModel(inner)
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, config.hidden_size))
        nn.init.normal_(self.query_tokens, std=inner.initializer_range)
        if config.reads_text is not None:
            self.text = QuestionEmbeddings(config.reads_text, config.hidden_size, inner.initializer_range)
        self.out_dim = config.hidden_size

    def num_tokens(self, in_tokens: int) -> int:
        """``num_query_tokens``, whatever enters."""
        return self.config.num_query_tokens

    varies = False

    def counter(self) -> FixedCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return FixedCount(self.num_tokens(0))

    def forward(self, features: Features) -> Features:
        """``tokens [n, f, v, in_dim]`` (class token included) -> ``[n, f, num_query_tokens, hidden_size]``.

        With ``reads_text`` every frame of a medium is asked with its question, ``features.about.texts [n, t]``.

        Raises ConfigError: ``reads_text``, and a batch without questions.
        """
        image = features.tokens.flatten(0, 1)
        mask: Tensor | None = None if features.mask is None else features.mask.flatten(0, 1)
        queries = self.query_tokens.expand(len(image), -1, -1)
        if self.config.reads_text is None:
            inputs = {"query_embeds": queries, "encoder_attention_mask": None if mask is None else mask.long()}
        else:
            inputs = self._with_text(queries, features, mask)
        out = self.qformer(encoder_hidden_states=image, **inputs).last_hidden_state[:, : queries.shape[1]]
        return dataclasses.replace(features, tokens=out.unflatten(0, features.tokens.shape[:2]), mask=None, grid=None)

    def _with_text(self, queries: Tensor, features: Features, mask: Tensor | None) -> dict[str, Any]:
        """What the encoder gets: ``[queries; question]``, and which keys of either attention are real."""
        ids = None if features.about is None else features.about.texts
        if ids is None:
            raise ConfigError(
                "model.bridge qformer: it reads the question about an image, but the batch holds none",
                fix="make the examples with build_processor of the same composition",
            )
        ids = ids.repeat_interleave(features.tokens.shape[1], 0)
        real = ids >= 0
        return {
            "query_embeds": torch.cat([queries, self.text(ids).to(queries.dtype)], dim=1),
            "query_length": queries.shape[1],
            "attention_mask": torch.cat([real.new_ones(queries.shape[:2]), real], dim=1).long(),
            "encoder_attention_mask": None if mask is None else mask[:, None, None],
        }
