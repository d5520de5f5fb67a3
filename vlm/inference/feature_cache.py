"""A cache of visual features."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlm.common.types import PADDING, Features, MediaFacts
from vlm.models.frames import join, same_shapes


class FeatureCache:
    """Keeps the features of the most recent images, by content, up to a number of bytes; thread-safe.

    The key is a digest of the preprocessed pixels, so that a path, an upload and a copy of an image share one entry.

    Attributes:
        bytes: what is kept now.
        hits: media that were not encoded again.
        misses: media that were encoded.
    """

    def __init__(self, limit: int = 512 * 2**20) -> None:
        self.limit = limit
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: dict[str, Features] = {}
        self._age = 0  # how often it was cleared
        self._lock = threading.Lock()

    def encode(
        self,
        pixels: Tensor,
        encoder: Callable[..., Features],
        frames: Tensor | None = None,
        about: MediaFacts | None = None,
        tenants: Sequence[str] = (),
    ) -> Features:
        """Features ``[n, f, v, d]`` of ``pixels``; only media that are not in the cache are encoded.

        Args:
            pixels: ``[n, f, 3, h, w]``.
            encoder: pixels (and ``frames`` and ``about``, if given) -> features.
            frames: ``[n]`` real frames of each medium where they differ, else None.
            about: what else the features depend on; part of the key.
            tenants: whose each medium is; what was encoded for one is not used for another.
        """
        keys = [""] * len(pixels)
        for places, (count, height, width) in same_shapes(pixels, frames, about):
            for place in places.tolist():
                facts = None if about is None else about.select(place)
                owner = tenants[place] if tenants else ""
                keys[place] = owner + _key(pixels[place, :count, :, :height, :width], facts)
        with self._lock:
            known = {k: self._entries[k] for k in keys if k in self._entries}
            age = self._age
        new = list(dict.fromkeys(k for k in keys if k not in known))
        if new:
            where = [keys.index(k) for k in new]
            facts = about and about.select(where)
            given = (None if frames is None else frames[where], facts)
            features = encoder(
                pixels[where], *(given if facts is not None else given[:1] if frames is not None else ())
            )
            known |= {key: replace(features.select([i]), about=None) for i, key in enumerate(new)}
        with self._lock:
            self.misses += len(new)
            self.hits += len(keys) - len(new)
            for key in known if age == self._age else ():  # the most recent last
                self.bytes += _bytes(known[key]) if self._entries.pop(key, None) is None else 0
                self._entries[key] = known[key]
            while self.bytes > self.limit:
                self.bytes -= _bytes(self._entries.pop(next(iter(self._entries))))
        entries = [known[k] for k in keys]
        if len({(e.tokens.shape, e.mask is None, e.grid is None) for e in entries}) > 1:
            places = torch.arange(len(entries), device=entries[0].tokens.device)
            return replace(join([(places[i : i + 1], e) for i, e in enumerate(entries)]), about=about)
        masks, grids = [e.mask for e in entries if e.mask is not None], [e.grid for e in entries if e.grid is not None]
        return Features(
            torch.cat([e.tokens for e in entries]),
            torch.cat(masks) if masks else None,
            torch.cat(grids) if grids else None,
            about,
        )

    def clear(self) -> None:
        """Forget everything, e.g. after the weights have changed."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0
            self._age += 1

    def __len__(self) -> int:
        """Number of images kept."""
        return len(self._entries)


def _bytes(features: Features) -> int:
    tensors = (features.tokens, features.mask, features.grid)
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _key(medium: Tensor, about: MediaFacts | None) -> str:
    data = medium.detach().to("cpu", torch.float32).contiguous()
    known = () if about is None else [t for t in (about.sizes, about.texts) if t is not None]
    facts = [[i for i in t.tolist() if i != PADDING] for t in known]
    digest = hashlib.blake2b(data.numpy().data, digest_size=24).hexdigest()
    return f"{tuple(data.shape)}:{digest}:{facts}"
