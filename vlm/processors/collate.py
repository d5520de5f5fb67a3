"""Examples -> Batch: right padding, or several samples in a row (packing)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlm.common.errors import DataError
from vlm.common.types import (
    IGNORE_INDEX,
    MEDIA_TOKEN,
    PADDING,
    Batch,
    Example,
    Features,
    MediaFacts,
    MediumShape,
    StoredGroup,
    StoredMedia,
    StoredMedium,
)


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """One example per row: :func:`collate_rows`, with its errors."""
    return collate_rows([[example] for example in examples], pad_id)


@dataclass(frozen=True)
class VisualTokens:
    """Positions of a medium in the LLM's sequence: ``per_medium + frames * per_frame``, or what ``rules`` count."""

    per_medium: int = 0
    per_frame: int = 1
    rules: tuple[Callable[[MediumShape], MediumShape], ...] = ()  # these count instead (``VLM.counters``)

    @classmethod
    def of(
        cls, count: Callable[[int], int], rules: tuple[Callable[[MediumShape], MediumShape], ...] = ()
    ) -> VisualTokens:
        """From an affine function of the number of frames (``VLM.visual_tokens``), and ``VLM.counters``."""
        per_frame = count(2) - count(1)
        return cls(count(1) - per_frame, per_frame, rules)

    def positions(self, medium: MediumShape | int) -> int:
        """Positions of a medium, given by its shape or, where no more counts, by its number of frames."""
        shape = MediumShape(medium) if isinstance(medium, int) else medium
        if not self.rules:
            return self.per_medium + shape.frames * self.per_frame
        for rule in self.rules:
            shape = rule(shape)
        return shape.frames * shape.tokens

    def of_media(self, example: Example) -> list[int]:
        """Positions of every medium of an example."""
        sizes = example.sizes or [None] * len(example.media)
        shapes = (
            MediumShape(len(m), m.shape[-2], m.shape[-1], size) for m, size in zip(example.media, sizes, strict=True)
        )
        return [self.positions(shape) for shape in shapes]

    def fused_length(self, example: Example) -> int:
        """Positions of an example in the LLM's sequence, media included."""
        return len(example.ids) + sum(self.of_media(example)) - len(example.media)


def unify_dtypes(examples: Sequence[Example], normalize: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Normalize all media if some are uint8 and others float."""
    if len({m.dtype for e in examples for m in e.media if not m.is_meta}) > 1:
        for example in examples:
            example.media = [m if m.is_meta else normalize(m) for m in example.media]


def finalize_pixels(batch: Batch, normalize: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """``batch`` with float pixels; frames and borders that only pad are zero."""
    if batch.pixels is None or batch.pixels.dtype != torch.uint8:
        return batch
    pixels = normalize(batch.pixels)
    there = range(len(pixels)) if batch.stored is None else missing(batch.stored)
    if batch.about is not None and batch.about.shapes is not None:
        for medium, place in zip(pixels, there, strict=True):
            height, width = batch.about.shapes[place].tolist()
            medium[..., height:, :] = 0
            medium[..., width:] = 0
    if batch.frames is not None:
        for medium, place in zip(pixels, there, strict=True):
            medium[int(batch.frames[place]) :] = 0
    return replace(batch, pixels=pixels)


def missing(stored: StoredMedia) -> list[int]:
    """Places of the media whose pixels a batch holds, in order."""
    read = {place for group in stored.groups for place in group.places}
    return [place for place in range(len(stored.media)) if place not in read]


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
    examples = [example for row in rows for example in row]
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
    pixels, frames = _stack(media, any_size=any(example.sizes for example in examples))
    stored = _stored(examples, media)
    where = ((ids == MEDIA_TOKEN) & (segments > 0)).nonzero()
    names = [example.id for example in examples]
    about = _facts(examples, media)
    places = (where[:, 0], where[:, 1])
    return Batch(ids, labels, segments, pixels, *places, frames, sample_ids=names, about=about, stored=stored)


def _stack(media: list[torch.Tensor], *, any_size: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """``[n, f, 3, h, w]``, and the number of frames ``[n]`` of each medium if they differ."""
    if not media:
        return None, None
    shapes = {tuple(m.shape[1:]) for m in media}
    if len(shapes) > 1 and not any_size:
        fix = "give every dataset of the run the same image size"
        raise DataError(f"media of different sizes in one batch: {sorted(shapes)}", fix=fix)
    counts = [len(m) for m in media]
    frames = torch.tensor(counts) if len(set(counts)) > 1 else None
    media = [m for m in media if not m.is_meta]  # the features of others are stored
    if not media:
        return None, frames
    if len({m.shape for m in media}) == 1:
        shared: torch.Tensor = torch.utils.data.default_collate(media)  # shared memory in a worker
        return shared, frames
    height, width = (max(m.shape[k] for m in media) for k in (-2, -1))
    pixels = media[0].new_zeros((len(media), max(map(len, media)), 3, height, width))
    for place, medium in zip(pixels, media, strict=True):
        place[: len(medium), :, : medium.shape[-2], : medium.shape[-1]] = medium
    return pixels, frames


def _stored(examples: Sequence[Example], media: Sequence[torch.Tensor]) -> StoredMedia | None:
    """What a feature cache has of the media; None: there is no cache, or it keeps none of them."""
    known = [medium for e in examples for medium in e.stored or [None] * len(e.media)]
    if not any(known):
        return None
    groups = defaultdict[tuple[Any, ...], list[int]](list)
    for place, medium in enumerate(known):
        if medium is not None and medium.features is not None:
            value = medium.features
            whole = (value.mask is None, value.grid is None)
            groups[(value.tokens.dtype, medium.dtype, value.tokens.shape[1:], whole)].append(place)
    shapes = [(len(m), m.shape[-2], m.shape[-1]) for m in media]
    stacked = [_group([known[place] for place in places], places) for places in groups.values()]
    return StoredMedia([medium and replace(medium, features=None) for medium in known], shapes, stacked)


def _group(media: Sequence[StoredMedium | None], places: list[int]) -> StoredGroup:
    """The features of some media, all of one shape, together."""
    values = [m.features for m in media if m is not None and m.features is not None]
    dtype = next(m.dtype for m in media if m is not None and m.dtype is not None)
    tokens = torch.cat([value.tokens for value in values])
    mask, grid = (
        torch.cat(own) if own else None
        for own in ([v.mask for v in values if v.mask is not None], [v.grid for v in values if v.grid is not None])
    )
    return StoredGroup(places, Features(tokens, mask, grid), dtype)


def _facts(examples: Sequence[Example], media: Sequence[torch.Tensor]) -> MediaFacts | None:
    """What else is known of the media; None: nothing."""
    shapes = [tuple(m.shape[-2:]) for m in media]
    sizes = [size or (0, 0) for e in examples for size in e.sizes or [None] * len(e.media)]
    texts = [text for e in examples for text in e.texts or [[]] * len(e.media)]
    facts = MediaFacts(shapes=torch.tensor(shapes) if len(set(shapes)) > 1 else None)
    if any(example.sizes for example in examples):
        facts.sizes = torch.tensor(sizes)
    if any(texts):
        facts.texts = torch.full((len(texts), max(map(len, texts))), PADDING)
        for place, text in zip(facts.texts, texts, strict=True):
            place[: len(text)] = torch.tensor(text)
    return facts if any(value is not None for value in vars(facts).values()) else None
