"""Losses of single tokens, taken from the forward pass of training as it runs, and the samples of a batch."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.common.types import IGNORE_INDEX, Batch, Example
from vlm.models.fusion.base import LLMInputs
from vlm.models.vlm import VLM

TokenLoss = list[float]
"""Losses of the trained tokens of a sample, in order."""
ROWS = 512
"""Positions whose logits are in memory at a time."""


class TokenLosses:
    """Within the block, collects the losses of every forward pass: of its samples, in the order of the batch.

    The forward pass itself is not changed; the losses are computed a second time from the hidden states, without the
    label smoothing that a configuration may have.
    """

    def __init__(self, model: Any) -> None:
        """``model`` None: collects nothing."""
        self.model = model if isinstance(model, VLM) else None
        self.found: list[list[TokenLoss]] = []

    def __enter__(self) -> TokenLosses:
        self._handle = None if self.model is None else self.model.llm.register_forward_hook(self._after)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()

    @torch.no_grad()
    def _after(self, llm: Any, given: tuple[Any, ...], hidden: Tensor) -> None:
        inputs: LLMInputs = given[0]
        keep = inputs.predicts()
        targets, rows = inputs.targets(keep), keep.nonzero()[:, 0]
        losses = torch.cat(
            [
                F.cross_entropy(llm.head(part).float(), wanted, reduction="none")
                for part, wanted in zip(hidden.detach().split(ROWS), targets.split(ROWS), strict=True)
            ]
        )
        places = torch.stack([rows, inputs.segments[keep]], 1).tolist()
        samples: dict[tuple[int, int], TokenLoss] = {}
        for row, segments in enumerate(inputs.segments.max(1).values.tolist()):
            samples |= {(row, segment): [] for segment in range(1, segments + 1)}
        for (row, segment), loss in zip(places, losses.tolist(), strict=True):
            samples[row, segment].append(loss)
        self.found.append(list(samples.values()))


def examples_of(batch: Batch) -> list[Example]:
    """The samples of a batch as the processor made them, in the order of ``sample_ids``; pixels as they are there."""
    result: list[Example] = []
    for row, segments in enumerate(batch.segments):
        for number in range(1, int(segments.max()) + 1):
            own = (segments == number).nonzero()[:, 0]
            first, end = int(own[0]), int(own[-1]) + 1
            media = ((batch.media_row == row) & (batch.media_pos >= first) & (batch.media_pos < end)).nonzero()[:, 0]
            example = Example(
                batch.ids[row, first:end].tolist(),
                batch.labels[row, first:end].tolist(),
                [_medium(batch, place) for place in media.tolist()],
                batch.sample_ids[len(result)],
                sizes=[_size(batch, place) for place in media.tolist()],
            )
            result.append(example)
    return result


def _medium(batch: Batch, place: int) -> Tensor:
    """Pixels ``[f, 3, h, w]`` of a medium without what pads it."""
    assert batch.pixels is not None
    pixels = batch.pixels[place]
    if batch.frames is not None:
        pixels = pixels[: int(batch.frames[place])]
    if batch.about is not None and batch.about.shapes is not None:
        height, width = batch.about.shapes[place].tolist()
        pixels = pixels[..., :height, :width]
    return pixels


def _size(batch: Batch, place: int) -> tuple[int, int] | None:
    """Height and width of an image before its recipe, where that is known."""
    if batch.about is None or batch.about.sizes is None:
        return None
    height, width = batch.about.sizes[place].tolist()
    return (height, width) if height else None


def places_of(example: Example) -> list[int]:
    """Places of the tokens that have a loss; the first of a sample is predicted by nothing."""
    return [place for place, label in enumerate(example.labels) if label != IGNORE_INDEX and place]
