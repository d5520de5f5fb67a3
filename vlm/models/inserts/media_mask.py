"""Which media the positions of a call attend to, as masks for cross-attention.

Shapes: b rows, s positions, n media of the call, k tokens of a medium, m media of a row, e width.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from vlm.models.inserts.base import InsertData


@dataclass
class MediaMask:
    """What rows of positions attend to.

    Attributes:
        numbers: ``[b, m]`` the media of each row, of the ``n`` of the call; None: each once, in order.
        allowed: ``[b, s, m * k]`` which of their tokens; None: all.
        even: ``[b, s]`` positions that attend to these tokens uniformly, or None.
        rows: b.
        places: ``[b, s]`` where the positions lie in the call's flattened rows; None: each once, in order.
    """

    numbers: Tensor | None
    allowed: Tensor | None
    even: Tensor | None
    rows: int
    places: Tensor | None = None

    def of(self, values: Tensor) -> Tensor:
        """Values of the media ``[n, k, e]`` -> those that each row attends to, ``[b, m * k, e]``."""
        if self.numbers is None:
            return values.reshape(self.rows, -1, values.shape[-1])
        return values[self.numbers].flatten(1, 2)


def media_mask(data: InsertData) -> MediaMask | None:
    """The mask of the positions ``[b, s]`` of a call; None if none of them attends to a medium.

    Args:
        data: ``tokens`` location, first, last ``[b, s]`` (numbers of media) and ``shared`` media ``[n, k, e]``, real
            ``[n, k]`` or None, immediate, evenly, as :class:`~vlm.models.fusion.cross_attn.CrossAttention` gives them.
    """
    location, first, last = (data.tokens[name] for name in ("location", "first", "last"))
    media, real = data.shared["media"], data.shared["real"]
    immediate, evenly = data.shared["immediate"], data.shared["evenly"]
    has_media = last >= first
    attends = has_media if evenly and not immediate else location >= 0
    if not bool(attends.any()):
        return None
    number, exists = _media_of_rows(first, last, len(media))
    n = number[:, None]  # [b, 1, m], against [b, s, 1]
    own = exists[:, None] & (n >= first[..., None]) & (n <= last[..., None])
    allowed = own & ((n == location[..., None]) if immediate else (n <= location[..., None]))
    even = None
    if evenly:  # positions whose medium is missing attend to all of their sample's
        even = has_media & attends & ~allowed.any(2)
        allowed = allowed | (even[..., None] & own)
    allowed = allowed.repeat_interleave(media.shape[1], 2)  # [b, s, m * k]
    if real is not None:
        allowed = allowed & real[number].flatten(1)[:, None]
    return MediaMask(number, allowed, even, len(location))


def media_masks(data: InsertData) -> list[MediaMask]:
    """The same for a call without gradients, divided so that positions meet few media that they may not see.

    In a single row, of several samples or of tokens of several requests, neighbours with the same media belong
    together; those equally many are the rows of one mask. Positions without media are in none.
    """
    size = data.tokens["location"].numel()
    if len(data.tokens["location"]) > 1:
        return _plain([(None, data)])
    chosen: list[tuple[Tensor | None, InsertData]] = []
    for length, starts in _runs(data).items():
        places = (torch.tensor(starts)[:, None] + torch.arange(length)).to(data.tokens["location"].device)
        chosen.append((None if places.numel() == size else places, _at(data, places)))
    return _plain(chosen)


def _at(data: InsertData, places: Tensor) -> InsertData:
    """The data of the positions ``places [r, t]`` of one row."""
    return data.moved(lambda value: value[0, places])


def _runs(data: InsertData) -> dict[int, list[int]]:
    """Neighbours in the row ``[1, s]`` that have the same media: how many they are -> where such runs begin."""
    runs: dict[int, list[int]] = defaultdict(list)
    start = 0
    media = zip(data.tokens["first"][0].tolist(), data.tokens["last"][0].tolist(), strict=True)
    for (first, last), run in groupby(media):
        length = sum(1 for _ in run)
        if last >= first:
            runs[length].append(start)
        start += length
    return runs


def _plain(chosen: list[tuple[Tensor | None, InsertData]]) -> list[MediaMask]:
    """Masks of positions at ``places``, where any attends to a medium, without selections that select everything."""
    masks = []
    for places, data in chosen:
        mask = media_mask(data)
        if mask is None or mask.numbers is None or mask.allowed is None:
            continue
        every = torch.arange(len(data.shared["media"]), device=mask.numbers.device)
        numbers = None if torch.equal(mask.numbers.flatten(), every) else mask.numbers
        allowed = None if bool(mask.allowed.all()) else mask.allowed
        masks.append(replace(mask, numbers=numbers, allowed=allowed, places=places))
    return masks


def _media_of_rows(first: Tensor, last: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Numbers ``[b, m]`` of the media of each row, and ``[b, m]`` whether they are more than filling.

    A row with fewer is filled up with its own first one: another row's may not be a number, which no mask hides.
    ``first`` and ``last`` are ``[b, s]``, the media of each position's sample; ``count`` is the number of all media.
    """
    low = torch.where(last >= first, first, count).amin(1)
    high = last.amax(1)
    most = max(1, int((high - low + 1).amax()))
    number = low[:, None] + torch.arange(most, device=low.device)
    exists = number <= high[:, None]
    return torch.where(exists, number, low[:, None]).clamp(max=count - 1), exists
