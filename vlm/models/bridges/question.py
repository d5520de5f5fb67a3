"""What bridges that read the question about an image share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm.common.bounds import Count
from vlm.common.errors import ConfigError


@dataclass
class QuestionOptions:
    """Options of ``reads_text:``, the tokens in which a bridge reads the question about an image.

    A question of more than ``max_length`` tokens (null: ``max_positions``) is cut on the side that
    ``tokenizer_config.json`` names as ``truncation_side``.

    Example: ``reads_text: {tokenizer: /models/mine/qformer_tokenizer}``
    """

    tokenizer: str = ""  # folder with tokenizer.json
    vocab_size: Count = 30523
    max_positions: Count = 512  # rows of the table of positions
    max_length: Count | None = None  # tokens of a question, those that the tokenizer adds included

    def __post_init__(self) -> None:
        """Raises ConfigError for a question longer than the table of positions."""
        if self.max_length is not None and self.max_length > self.max_positions:
            raise ConfigError(
                f"reads_text.max_length is {self.max_length}, at most max_positions, {self.max_positions}, is possible"
            )

    @property
    def limit(self) -> int:
        """The longest question in tokens."""
        return self.max_length or self.max_positions


class QuestionEmbeddings(nn.Module):
    """Tables of words and of positions. State-dict keys: ``word_embeddings.weight``, ``position_embeddings.weight``."""

    def __init__(self, options: QuestionOptions, width: int, std: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(options.vocab_size, width)
        self.position_embeddings = nn.Embedding(options.max_positions, width)
        for table in (self.word_embeddings, self.position_embeddings):
            nn.init.normal_(table.weight, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids ``[n, t]``, negative at padding -> ``[n, t, width]``."""
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.word_embeddings(ids.clamp(min=0)) + self.position_embeddings(places)
