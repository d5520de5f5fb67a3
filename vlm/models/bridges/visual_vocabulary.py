"""A vocabulary of visual words: each token is a mixture of rows of a table, as a text token is one row."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.bounds import Count, Dropout, Positive, Range
from vlm.common.errors import ConfigError
from vlm.common.registry import register_bridge
from vlm.common.types import Features, MediumShape
from vlm.models.bridges.mlp import NORMS
from vlm.models.counting import SameCount
from vlm.models.precision import no_autocast


@dataclass(frozen=True)
class Times:
    """``factor`` tokens for each that enters, in no grid."""

    factor: int

    def __call__(self, shape: MediumShape) -> MediumShape:
        """``shape`` with that number."""
        return dataclasses.replace(shape, tokens=shape.tokens * self.factor, grid=None)


@register_bridge("visual_vocabulary")
class VisualVocabulary(nn.Module):
    """Probabilities of ``size`` visual words, and the mean of their embeddings under these: arXiv:2405.20797.

    State-dict keys: ``head.*`` (linear, to the words), ``table.weight [size, tokens_per_word * out_dim]``, and
    ``norm.*`` where the input is normed first.
    """

    @dataclass
    class Config:
        """Options of ``bridge: {name: visual_vocabulary}``; ``out_dim`` null means the LLM's width.

        A word has ``tokens_per_word`` embeddings, which leave as so many tokens. A ``temperature`` below 1 makes the
        probabilities sharper; a head that was solved for (``run.runner: closed_form``) gives values between 0 and 1 and
        needs a small one, such as 0.004 for a thousand words. In training, ``dropout`` is of the values that enter,
        after the norm. ``hide`` is the share of tokens whose likeliest word is left out in training: a new object has
        no word of its own either.

        Example: ``bridge: [{name: visual_vocabulary, size: 4096}]``
        """

        size: Count
        tokens_per_word: Count = 1
        temperature: Annotated[float, Range(least=1e-6)] = 1.0
        norm: Literal["layer", "rms"] | None = None  # of the tokens that enter
        norm_eps: Positive = 1e-5
        dropout: Dropout = 0.0
        hide: Dropout = 0.0
        out_dim: Count | None = None

        def __post_init__(self) -> None:
            """Raises ConfigError: the only word can be hidden."""
            if self.size == 1 and self.hide:
                raise ConfigError("model.bridge visual_vocabulary: hide needs a size of 2 or more", fix="set hide to 0")

    varies = False

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.out_dim or llm_dim
        self.norm = nn.Identity() if config.norm is None else NORMS[config.norm](in_dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(in_dim, config.size)
        self.table = nn.Embedding(config.size, config.tokens_per_word * self.out_dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def num_tokens(self, in_tokens: int) -> int:
        """``in_tokens * tokens_per_word``."""
        return in_tokens * self.config.tokens_per_word

    def counter(self) -> Times | SameCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return SameCount() if self.config.tokens_per_word == 1 else Times(self.config.tokens_per_word)

    def first_layer(self) -> nn.Linear:
        """See :class:`~vlm.models.protocols.LinearAtFirst`."""
        return self.head

    def entered(self, features: Features) -> Tensor:
        """See :class:`~vlm.models.protocols.LinearAtFirst`."""
        return self.norm(features.tokens)

    def name_words(self, embeddings: Tensor) -> None:
        """See :class:`~vlm.models.protocols.NamesWords`: ``[n, tokens_per_word, out_dim]`` for the first n words."""
        with torch.no_grad():
            self.table.weight[: len(embeddings)] = embeddings.flatten(1).to(self.table.weight)

    def probabilities(self, features: Features) -> Tensor:
        """Of the visual words ``[n, f, v, size]``, in float32."""
        entered = self.dropout(self.entered(features))
        with no_autocast(entered.device):  # a small temperature magnifies what bf16 rounds away
            logits = F.linear(entered.float(), self.head.weight.float(), self.head.bias.float())
        logits = (logits - logits.amax(-1, keepdim=True)) / self.config.temperature
        if self.training and self.config.hide:
            hidden = torch.rand(logits.shape[:-1], device=logits.device) < self.config.hide
            likeliest = logits.argmax(-1, keepdim=True)
            out = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, likeliest, hidden[..., None])
            logits = logits.masked_fill(out, -torch.inf)
        return logits.softmax(-1)

    def forward(self, features: Features) -> Features:
        """``[n, f, v, in_dim]`` -> ``[n, f, v * tokens_per_word, out_dim]``."""
        words = self.probabilities(features).to(self.table.weight.dtype) @ self.table.weight
        slots = self.config.tokens_per_word
        tokens = words.unflatten(-1, (slots, self.out_dim)).flatten(2, 3)
        mask = None if features.mask is None else features.mask.repeat_interleave(slots, dim=2)
        grid = features.grid if slots == 1 else None
        return dataclasses.replace(features, tokens=tokens, mask=mask, grid=grid)
