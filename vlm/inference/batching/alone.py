"""Rows that cannot share the calls of the language model; each is read by a decoder of its own.

So it is for recurrent layers, for position biases, for attention that does not go through our interface, and for
language models of other packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm.inference.batching.row import Row
from vlm.inference.batching.stats import Stats
from vlm.inference.incremental import IncrementalDecoder
from vlm.models.precision import autocast

if TYPE_CHECKING:
    from vlm.models.vlm import VLM


class LoneRows:
    """Rows beside each other that take their steps in turn."""

    def __init__(self, model: VLM, most: int, stats: Stats) -> None:
        """``most``: rows at a time."""
        self.model = model
        self.most = most
        self.stats = stats
        self.rows: list[Row] = []

    def fits(self) -> bool:
        """Whether there is room for one more row."""
        return len(self.rows) < self.most

    def begin(self, row: Row) -> None:
        """Take in a row."""
        assert row.prompt is not None
        row.alone = IncrementalDecoder(self.model.llm.model, row.prompt, row.generation.use_cache)
        self.rows.append(row)

    def step(self, row: Row) -> Tensor:
        """Logits ``[1, vocab]`` after the prompt, or after the last written token."""
        self.stats.steps += 1
        tokens = None if row.prompt is not None else torch.tensor(row.answer.ids[-1:], device=self.model.device)
        with autocast(self.model.device, self.model.compute_dtype):
            logits: Tensor = row.alone.read(tokens)
        row.prompt = None
        return logits

    def remove(self, row: Row) -> None:
        """Forget a row."""
        self.rows.remove(row)
        row.alone = None
