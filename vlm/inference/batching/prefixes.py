"""Keys and values of prompts that may come again.

The key of a prefix is a digest of everything that they depend on besides the weights: the embeddings that the language
model reads (so the tokens of the text and the visual tokens, hence the pixels and their recipe), positions, which
tokens see one another, the data of inserts, and the tenant. One cache belongs to one engine, which empties it when its
weights have changed.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vlm.inference.incremental import Prompt
    from vlm.models.llm.slots import Piece


@dataclass(frozen=True)
class Cut:
    """A position before which a prompt may be divided, and whether what precedes it may be kept."""

    end: int
    kept: bool


def cuts_of(prompt: Prompt, block: int, keeps: bool = True) -> list[Cut]:
    """The cuts of a prompt of one row; they depend on the prompt alone, and the last is its end.

    There is one ``block`` positions after the last one and, if the prompt is to be kept, one after each medium. Tokens
    that see one another are never divided; what ends within a medium is not kept.
    """
    size = prompt.mask.shape[1]
    media = _numbers(prompt.media, size)
    blocks = _numbers(prompt.blocks, size)
    cuts, last = [], 0
    ends = [*(_ends(prompt.media) if keeps and prompt.media is not None else []), size]
    for end in ends:
        for at in [*range(last + block, end, block), end]:
            if at < size and blocks is not None and blocks[at - 1] == blocks[at] > 0:
                continue
            inside = at < size and media is not None and media[at - 1] == media[at] > 0
            cuts.append(Cut(at, kept=not inside and at < size))
        last = end
    return cuts


def _numbers(values: Tensor | None, size: int) -> list[int] | None:
    return None if values is None else values[0, :size].tolist()


def _ends(media: Tensor) -> list[int]:
    """Where a medium ends and the prompt goes on."""
    row = media[0]
    return ((row[:-1] > 0) & (row[1:] != row[:-1])).nonzero()[:, 0].add(1).tolist()


def keys_of(prompt: Prompt, cuts: Sequence[Cut], salt: str) -> list[bytes]:
    """A digest for each cut that may be kept, of all that precedes it."""
    digest = hashlib.blake2b(f"{len(salt)}:{salt}".encode(), digest_size=24)
    inserts = prompt.inserts
    if inserts is not None:
        for value in _flat(inserts.shared):
            _update(digest, value)
    keys, first = [], 0
    for cut in cuts:
        if not cut.kept:
            continue
        digest.update(b"%d:" % cut.end)
        tensors = [prompt.embeds, prompt.positions, prompt.blocks, *(inserts.tokens.values() if inserts else ())]
        for tensor in tensors:
            if tensor is not None:
                _update(digest, tensor[0, first : cut.end])
        keys.append(digest.digest())
        first = cut.end
    return keys


def _flat(values: dict[str, Any]) -> Iterator[Any]:
    for name in sorted(values):
        yield name
        yield values[name]


def _update(digest: Any, value: Any) -> None:
    if not isinstance(value, Tensor):
        digest.update(repr(value).encode())
        return
    digest.update(repr((tuple(value.shape), value.dtype)).encode())
    digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


class PrefixCache:
    """The most recently used pieces of prompts, up to a number of bytes; thread-safe.

    Attributes:
        bytes: what is kept now.
        age: how often it was cleared; what was computed at another age is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.age = 0
        self.bytes = 0
        self._pieces: OrderedDict[bytes, Piece] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, keys: Sequence[bytes]) -> list[Piece]:
        """The pieces of the longest known prefix, one after the other."""
        with self._lock:
            found: list[Piece] = []
            for key in keys:
                if key not in self._pieces:
                    break
                found.append(self._pieces[key])
            for key in reversed(keys[: len(found)]):  # the beginning is the most recent, the end goes first
                self._pieces.move_to_end(key)
            return found

    def knows(self, key: bytes) -> bool:
        """Whether a piece is there."""
        with self._lock:
            return key in self._pieces

    def add(self, key: bytes, piece: Piece, age: int) -> None:
        """Keep a piece, begun at that age, and forget those that were not used for longest."""
        size = _bytes(piece)
        if size > self.limit:
            return
        with self._lock:
            if key in self._pieces or age != self.age:
                return
            self._pieces[key] = piece
            self.bytes += size
            while self.bytes > self.limit:
                self.bytes -= _bytes(self._pieces.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget everything, e.g. after the weights have changed."""
        with self._lock:
            self._pieces.clear()
            self.bytes = 0
            self.age += 1

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self._pieces)


def _bytes(piece: Piece) -> int:
    return sum(t.numel() * t.element_size() for pair in piece for t in pair)
