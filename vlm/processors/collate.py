"""Examples -> Batch: right padding, or several samples in a row (packing)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from vlm.common.errors import DataError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Example


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """One example per row: :func:`collate_rows`, with its errors."""
    return collate_rows([[example] for example in examples], pad_id)


@dataclass(frozen=True)
class VisualTokens:
    """Positions of a medium in the LLM's sequence: ``per_medium + frames * per_frame``."""

    per_medium: int = 0
    per_frame: int = 1

    @classmethod
    def of(cls, count: Callable[[int], int]) -> VisualTokens:
        """From an affine function of the number of frames (``VLM.visual_tokens``)."""
        per_frame = count(2) - count(1)
        return cls(count(1) - per_frame, per_frame)

    def positions(self, frames: int) -> int:
        """Positions of a medium."""
        return self.per_medium + frames * self.per_frame

    def fused_length(self, example: Example) -> int:
        """Positions of an example in the LLM's sequence, media included."""
        return len(example.ids) + sum(self.positions(len(m)) - 1 for m in example.media)


def unify_dtypes(examples: Sequence[Example], normalize: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Normalize all media if some are uint8 and others float."""
    if len({m.dtype for e in examples for m in e.media}) > 1:
        for example in examples:
            example.media = [normalize(m) for m in example.media]


def finalize_pixels(batch: Batch, normalize: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """``batch`` with float pixels; frames that only pad are zero."""
    if batch.pixels is None or batch.pixels.dtype != torch.uint8:
        return batch
    pixels = normalize(batch.pixels)
    if batch.frames is not None:
        for medium, count in zip(pixels, batch.frames.tolist(), strict=True):
            medium[count:] = 0
    return replace(batch, pixels=pixels)


def collate_rows(rows: Sequence[Sequence[Example]], pad_id: int) -> Batch:
    """The given examples in each row, one after another, padded on the right.

    Returns:
        Batch whose ``segments`` number the examples of a row 1..k.

    Raises:
        DataError: media of different shapes, or placeholders and media of an example differ.
    """
    length = max(sum(len(e.ids) for e in row) for row in rows)
    ids, labels, segments = (torch.full((len(rows), length), fill) for fill in (pad_id, IGNORE_INDEX, 0))
    media: list[torch.Tensor] = []
    for r, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row, start=1):
            end = start + len(example.ids)
            ids[r, start:end] = torch.tensor(example.ids)
            labels[r, start:end] = torch.tensor(example.labels)
            segments[r, start:end] = number
            start = end
            placeholders = example.ids.count(MEDIA_TOKEN)
            if placeholders != len(example.media):
                raise DataError(
                    f"sample {example.source}/{example.id}: {placeholders} placeholders but {len(example.media)} media"
                )
            media += example.media
    pixels, frames = _stack(media)
    where = ((ids == MEDIA_TOKEN) & (segments > 0)).nonzero()
    names = [example.id for row in rows for example in row]
    return Batch(ids, labels, segments, pixels, where[:, 0], where[:, 1], frames, sample_ids=names)


def _stack(media: list[torch.Tensor]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """``[n, f, 3, h, w]``, and the number of frames ``[n]`` of each medium if they differ."""
    if not media:
        return None, None
    shapes = {tuple(m.shape[1:]) for m in media}
    if len(shapes) > 1:
        fix = "give every dataset of the run the same image size"
        raise DataError(f"media of different sizes in one batch: {sorted(shapes)}", fix=fix)
    counts = [len(m) for m in media]
    if len(set(counts)) == 1:
        shared: torch.Tensor = torch.utils.data.default_collate(media)  # shared memory in a worker
        return shared, None
    pixels = media[0].new_zeros((len(media), max(counts), *media[0].shape[1:]))
    for place, medium in zip(pixels, media, strict=True):
        place[: len(medium)] = medium
    return pixels, torch.tensor(counts)
