"""The fused sequence that the LLM reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.common.types import IGNORE_INDEX
from vlm.models.inserts.base import InsertData


@dataclass
class LLMInputs:
    """A fused sequence, padded on the right."""

    inputs_embeds: Tensor  # ``[b, L, d]``
    segments: Tensor  # ``[b, L]`` 0 at padding, 1.. numbers the samples of a row
    position_ids: Tensor  # ``[b, L]`` or ``[b, L, axes]``, restarting at every segment, 0 at padding
    labels: Tensor  # ``[b, L]``, ``IGNORE_INDEX`` at unsupervised positions
    packed: bool = False  # whether some row holds more than one sample
    inserts: InsertData | None = None  # data for the inserts, or None
    blocks: Tensor | None = None  # ``[b, L]``; tokens of a sample with the same number > 0 see one another
    media: Tensor | None = None  # ``[b, L]`` number of the medium, from 1, at its tokens; 0 at text

    @property
    def attention_mask(self) -> Tensor:
        """``[b, L]`` 0/1 when each row is one sample; else bool :meth:`visible` ``[b, 1, L, L]``."""
        if not self.packed:
            return (self.segments > 0).long()
        return self.visible()

    def visible(self) -> Tensor:
        """Bool ``[b, 1, L, L]``: what each position sees, the past of its own segment and its own block."""
        same = self.segments[:, :, None] == self.segments[:, None, :]
        size = self.segments.shape[1]
        seen = torch.ones(size, size, dtype=torch.bool, device=same.device).tril()
        if self.blocks is not None:
            seen = seen | (self.blocks[:, :, None] == self.blocks[:, None, :]) & (self.blocks > 0)[:, :, None]
        return (same & seen)[:, None]

    def predicts(self) -> Tensor:
        """``[b, L]`` bool: positions that predict a supervised token of their own sample."""
        keep = torch.zeros_like(self.labels, dtype=torch.bool)
        keep[:, :-1] = (self.labels[:, 1:] != IGNORE_INDEX) & (self.segments[:, 1:] == self.segments[:, :-1])
        return keep & (self.segments > 0)

    def targets(self, keep: Tensor) -> Tensor:
        """``[t]`` labels that the positions ``keep`` (of :meth:`predicts`) must predict."""
        return self.labels[:, 1:][keep[:, :-1]]

    def left_padded(self) -> LLMInputs:
        """The same rows padded on the left, as batched generation needs them.

        Raises ValueError: the rows are packed.
        """
        if self.packed:
            raise ValueError("packed rows cannot be padded on the left")
        length = (self.segments > 0).sum(1, keepdim=True)
        size = self.segments.shape[1]
        index = (torch.arange(size, device=length.device)[None] + length) % size
        rows = torch.arange(len(index), device=index.device)[:, None]
        names = ("inputs_embeds", "segments", "position_ids", "labels", "blocks", "media")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        inserts = None if self.inserts is None else self.inserts.gather(index)
        return dataclasses.replace(self, inserts=inserts, **{name: value[rows, index] for name, value in given.items()})
