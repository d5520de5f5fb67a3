"""Visual tokens of a batch of which some media come from a feature cache."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vlm.common.types import Batch, Features, StoredMedia, StoredMedium
from vlm.models.frames import join

if TYPE_CHECKING:
    from vlm.models.vlm import VLM

Shape = tuple[int, int, int]
"""Frames, height and width of a medium's pixels."""
Keep = Callable[[Sequence[StoredMedium | None], Shape, Features], Features]
"""Takes what the first parts made of media of one shape; returns it as it will be read again."""


@dataclass
class FirstParts:
    """The first ``count`` parts (the vision encoder is the first one), and what keeps their results."""

    count: int
    keep: Keep


def encode_stored(model: VLM, batch: Batch, stored: StoredMedia) -> Features:
    """What ``model.encode`` gives, with only the missing media going through the first parts.

    Later parts get the same groups of media as without a cache, so that they compute the same.
    """
    assert model.first is not None
    parts = []
    for shape, places in sorted(by_shape(stored).items()):
        about = batch.about and batch.about.select(torch.tensor(places, device=batch.ids.device))
        value = first_parts(model, batch, stored, shape, places)
        index = torch.tensor(places, device=value.tokens.device)
        parts.append((index, model.finish(value, about, model.first.count)))
    return dataclasses.replace(join(parts), about=batch.about)


def by_shape(stored: StoredMedia) -> dict[Shape, list[int]]:
    """Places in the batch of the media that share a shape, as :func:`vlm.models.frames.same_shapes` groups them."""
    found = defaultdict[Shape, list[int]](list)
    for place, shape in enumerate(stored.shapes):
        found[shape].append(place)
    return dict(found)


def first_parts(model: VLM, batch: Batch, stored: StoredMedia, shape: Shape, places: Sequence[int]) -> Features:
    """What the first parts make of the media ``places``, which have one shape, in that order."""
    read = {place: (group, row) for group in stored.groups for row, place in enumerate(group.places)}
    missing = [place for place in places if place not in read]
    parts: list[tuple[list[int], Features]] = []
    if missing:
        parts.append((missing, encode_missing(model, batch, stored, shape, missing)))
    for group in stored.groups:
        rows = [row for row, place in enumerate(group.places) if place in places]
        if rows:
            whole = len(rows) == len(group.places)
            value = group.features if whole else group.features.select(rows)
            value = dataclasses.replace(value, tokens=value.tokens.to(group.dtype))
            parts.append(([group.places[row] for row in rows], value))
    return merge(parts, places)


def encode_missing(model: VLM, batch: Batch, stored: StoredMedia, shape: Shape, missing: Sequence[int]) -> Features:
    """What the first parts make of the media ``missing``, which is kept. No gradient is recorded."""
    assert model.first is not None and batch.pixels is not None
    there = {place for group in stored.groups for place in group.places}
    row_of = {place: row for row, place in enumerate(p for p in range(len(stored.media)) if p not in there)}
    rows = torch.tensor([row_of[place] for place in missing], device=batch.pixels.device)
    frames, height, width = shape
    about = batch.about and batch.about.select(torch.tensor(missing, device=batch.pixels.device))
    with torch.no_grad():
        value = model.begin(batch.pixels[rows, :frames, :, :height, :width], about, model.first.count)
    return model.first.keep([stored.media[place] for place in missing], shape, value)


def merge(parts: Sequence[tuple[Sequence[int], Features]], places: Sequence[int]) -> Features:
    """The features of all ``places``, in their order; without a mask where no part has one and all are equally long."""
    if len(parts) == 1 and list(parts[0][0]) == list(places):
        return parts[0][1]
    rank = {place: k for k, place in enumerate(places)}
    values = [value for _, value in parts]
    joined = join([(torch.tensor([rank[p] for p in own], device=v.tokens.device), v) for own, v in parts])
    equal = len({value.tokens.shape[1:] for value in values}) == 1
    return dataclasses.replace(joined, mask=None) if equal and all(v.mask is None for v in values) else joined


def keep_missing(model: VLM, batch: Batch, stored: StoredMedia) -> int:
    """Compute and keep the results of the first parts that are missing, and nothing else; their number."""
    there = {place for group in stored.groups for place in group.places}
    count = 0
    for shape, places in by_shape(stored).items():
        missing = [place for place in places if place not in there and stored.media[place] is not None]
        if missing:
            encode_missing(model, batch, stored, shape, missing)
            count += len(missing)
    return count
