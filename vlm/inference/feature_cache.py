"""A cache of visual features."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from vlm.common.types import Features
from vlm.models.frames import join


class FeatureCache:
    """Keeps the features of the most recent images, by content; thread-safe.

    The key is a hash of the preprocessed pixels, so that a path, an upload and a copy of an image share one entry.
    """

    def __init__(self, capacity: int = 64) -> None:
        self.capacity = capacity
        self._entries: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._lock = threading.Lock()

    def encode(self, pixels: Tensor, encoder: Callable[..., Features], frames: Tensor | None = None) -> Features:
        """Features ``[n, f, v, d]`` of ``pixels``; only media that are not in the cache are encoded.

        Args:
            pixels: ``[n, f, 3, h, w]``.
            encoder: pixels (and ``frames``, if given) -> features.
            frames: ``[n]`` real frames of each medium where they differ, else None.
        """
        counts = [pixels.shape[1]] * len(pixels) if frames is None else frames.tolist()
        keys = [_key(medium[:count]) for medium, count in zip(pixels, counts, strict=True)]
        with self._lock:
            known = {k: self._entries[k] for k in keys if k in self._entries}
        new = list(dict.fromkeys(k for k in keys if k not in known))
        if new:
            where = [keys.index(k) for k in new]
            features = encoder(pixels[where]) if frames is None else encoder(pixels[where], frames[where])
            masks = features.mask if features.mask is not None else [None] * len(new)
            for key, tokens, mask in zip(new, features.tokens, masks, strict=True):
                known[key] = (tokens, mask)
        with self._lock:
            for key in known:  # the most recent last
                self._entries.pop(key, None)
                self._entries[key] = known[key]
            while len(self._entries) > self.capacity:
                del self._entries[next(iter(self._entries))]
        entries = [known[k] for k in keys]
        if len({tokens.shape for tokens, _ in entries}) > 1:
            single = [Features(t[None], None if m is None else m[None]) for t, m in entries]
            return join([(torch.tensor([k], device=f.tokens.device), f) for k, f in enumerate(single)])
        tokens = torch.stack([tokens for tokens, _ in entries])
        if all(mask is None for _, mask in entries):
            return Features(tokens)
        full = torch.ones(tokens.shape[1:-1], dtype=torch.bool, device=tokens.device)
        return Features(tokens, torch.stack([full if mask is None else mask for _, mask in entries]))

    def clear(self) -> None:
        """Forget everything, e.g. after the weights have changed."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        """Number of images kept."""
        return len(self._entries)


def _key(medium: Tensor) -> str:
    data = medium.detach().to("cpu", torch.float32).contiguous()
    return f"{tuple(data.shape)}:{hashlib.sha1(data.numpy().tobytes(), usedforsecurity=False).hexdigest()}"
