"""Writes features to a cache in a thread of its own, so that a step waits for no disk."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from vlm.common.types import Features, StoredMedium
from vlm.processors.features.entry import DTYPES, Entry, pack
from vlm.processors.features.index import LAYOUT, Index
from vlm.processors.features.store import LOOK, Writer

log = logging.getLogger(__name__)

_WAITING = 16
"""Batches that wait to be written at most; then a step does wait."""
_RECENT = 100_000
Shape = tuple[int, int, int]


class Keeper:
    """Takes features as a model computes them (:class:`vlm.models.frozen.encode.FirstParts`).

    Args:
        writer: where they go.
        index: what is there already.
        dtype: of what is stored; None: as it was computed.
    """

    def __init__(self, writer: Writer, index: Index, dtype: torch.dtype | None) -> None:
        self.writer, self._dtype = writer, dtype
        self._queue: queue.Queue[Any] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=_write_all, args=(self._queue, writer, index), daemon=True)
        self._thread.start()
        weakref.finalize(self, _end, self._queue)  # the thread ends with its owner

    def __call__(self, media: Sequence[StoredMedium | None], shape: Shape, value: Features) -> Features:
        """Write the features of ``media``, whose pixels have ``shape``; returns them as they will be read."""
        dtype = value.tokens.dtype
        stored = value.tokens.detach().to(self._dtype or dtype)
        if any(medium is not None for medium in media) and not self.writer.stopped and stored.dtype in DTYPES:
            self._put((list(media), shape, dataclasses.replace(value, tokens=stored), dtype))
        return dataclasses.replace(value, tokens=stored.to(dtype))

    def _put(self, item: Any) -> None:
        """Give it to the thread, which may have died of a fault."""
        while self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=1.0)
                return

    def close(self) -> None:
        """Wait until everything is written."""
        self._put(None)
        self._thread.join()
        self.writer.close()


def _end(waiting: queue.Queue[Any]) -> None:
    with contextlib.suppress(queue.Full):  # the thread is dead, or ends with the program
        waiting.put_nowait(None)


def _write_all(waiting: queue.Queue[Any], writer: Writer, index: Index) -> None:
    recent = set[bytes]()  # written since the index was read
    while (item := waiting.get()) is not None:
        media, shape, value, dtype = item
        if writer.stopped:
            continue
        if index.refresh(LOOK) or len(recent) > _RECENT:
            recent.clear()
        mask = None if value.mask is None else value.mask.cpu()
        tokens = value.tokens.cpu()
        for k, medium in enumerate(media):
            if medium is not None and medium.features is None and medium.key not in recent:
                recent.add(medium.key)
                own = Features(tokens[k : k + 1], None if mask is None else mask[k : k + 1])
                own.grid = None if value.grid is None else value.grid[k : k + 1]
                write_one(writer, index, medium, Entry(trimmed(own), dtype, shape, medium.size, medium.decoded))


def write_one(writer: Writer, index: Index, medium: StoredMedium, entry: Entry) -> None:
    """Write what is not there yet, or is damaged there."""
    if medium.layout is not None and not index.find(medium.layout[0], LAYOUT):
        key, text = medium.layout
        writer.write(key, medium.recipe, [text], LAYOUT)
    if medium.damaged or not index.find(medium.key):
        writer.write(medium.key, medium.recipe, pack(entry))


def trimmed(value: Features) -> Features:
    """The features of one medium without the padding that other media of its batch needed."""
    if value.mask is None:
        return value
    real = value.mask.flatten(0, 1).any(0).nonzero()
    length = int(real[-1]) + 1 if len(real) else 1
    mask = value.mask[:, :, :length]
    return dataclasses.replace(value, tokens=value.tokens[:, :, :length], mask=None if bool(mask.all()) else mask)
