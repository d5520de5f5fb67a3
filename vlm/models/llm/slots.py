"""Keys and values of many rows, and one call of the decoder that lengthens several of them.

The new tokens of all rows form one packed row ``[1, T]``. Every layer but attention works token by token; attention
writes the new keys and values into the slots of their rows and lets each row attend to its own slot. What a call
computes for a row is what that row alone would compute.

Shapes: R rows of a call, T new tokens in all, q the most of one row, n positions of the longest row, h heads, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Piece = list[tuple[Tensor, Tensor]]
"""Keys ``[h, c, d]`` and values of c positions, layer by layer."""

STEP = 128
"""Positions by which slots grow at least."""
TOGETHER = 16
"""New tokens of a row up to which rows attend in one padded batch."""


class Slots:
    """Keys and values ``[rows, h, length, d]`` of each layer; they grow when they must.

    What is not in use is zero or finite, because a masked value is multiplied by zero.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.rows = 0
        self.length = 0

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of that length; what is there stays."""
        if rows <= self.rows and length <= self.length:
            return
        if length > self.length:
            length = -(-max(length, self.length * 5 // 4) // STEP) * STEP
        rows, length = max(rows, self.rows), max(length, self.length)
        for stored in (self.keys, self.values):
            for layer, old in enumerate(stored):  # one by one, so that little is held twice
                stored[layer] = old.new_zeros(rows, old.shape[1], length, old.shape[3])
                stored[layer][: old.shape[0], :, : old.shape[2]] = old
        self.rows, self.length = rows, length

    @property
    def position_bytes(self) -> int:
        """Bytes of one position of one row; 0 before the first call."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in (*self.keys, *self.values))

    @property
    def bytes(self) -> int:
        """Bytes of all slots."""
        return self.rows * self.length * self.position_bytes

    def layer(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The slots of a layer; made for tokens like ``key`` and ``value [h, T, d]`` on its first call."""
        for stored, new in ((self.keys, key), (self.values, value)):
            if number == len(stored):
                stored.append(new.new_zeros(self.rows, new.shape[0], self.length, new.shape[2]))
        return self.keys[number], self.values[number]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of one row to another, which holds nothing (:meth:`clear`)."""
        for stored in (*self.keys, *self.values):
            stored[target, :, :length] = stored[source, :, :length]

    def read(self, row: int, first: int, last: int) -> Piece:
        """A copy of the positions ``first`` to ``last``."""
        pairs = zip(self.keys, self.values, strict=True)
        return [(k[row, :, first:last].clone(), v[row, :, first:last].clone()) for k, v in pairs]

    def write(self, row: int, first: int, piece: Piece) -> None:
        """Put positions there that :meth:`read` returned."""
        for number, (key, value) in enumerate(piece):
            keys, values = self.layer(number, key, value)
            keys[row, :, first : first + key.shape[1]] = key
            values[row, :, first : first + value.shape[1]] = value

    def clear(self, row: int, length: int) -> None:
        """Zero the first positions of a row: a masked value that is not a number would spoil another row."""
        for stored in (*self.keys, *self.values):
            stored[row, :, :length] = 0


@dataclass
class SlotLayout:
    """The rows of one call: ``counts[r]`` new tokens, one after the other, of slot ``rows[r]`` after ``starts[r]``."""

    slots: Slots
    rows: Sequence[int]
    starts: Sequence[int]
    counts: Sequence[int]
    device: torch.device
    keep: Tensor | None = None  # ``[t]`` tokens whose hidden states are read; None: all
    blocks: Tensor | None = None  # ``[R, n]`` as in ``LLMInputs``; None: all causal
    calls: int = 0  # calls of the attention
    _plain: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ends = [start + count for start, count in zip(self.starts, self.counts, strict=True)]
        self.most, self.reach = max(self.counts), max(self.ends)
        first = self.rows[0]
        self.together = self.most <= TOGETHER and list(self.rows) == list(range(first, first + len(self.rows)))

    @cached_property
    def _at(self) -> tuple[Tensor, Tensor]:
        """Slot and position ``[T]`` of each token."""
        slot = [r for r, count in zip(self.rows, self.counts, strict=True) for _ in range(count)]
        place = [i for start, end in zip(self.starts, self.ends, strict=True) for i in range(start, end)]
        both = torch.tensor([slot, place], device=self.device)
        return both[0], both[1]

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Token at each place ``[R * q]`` of a padded batch (the last one of a row at padding), and place ``[T]``."""
        gather, scatter, first = [], [], 0
        for row, count in enumerate(self.counts):
            gather += [first + min(i, count - 1) for i in range(self.most)]
            scatter += [row * self.most + i for i in range(count)]
            first += count
        return torch.tensor(gather, device=self.device), torch.tensor(scatter, device=self.device)

    @cached_property
    def _indices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Positions ``[R, 1, q, 1]`` of the queries and ``[1, 1, 1, n]`` of the keys, and the ends ``[R, 1, 1, 1]``."""
        start = torch.tensor(self.starts, device=self.device)[:, None, None, None]
        end = torch.tensor(self.ends, device=self.device)[:, None, None, None]
        query = start + torch.arange(self.most, device=self.device)[None, None, :, None]
        return query, torch.arange(self.reach, device=self.device)[None, None, None], end

    def mask(self, sees: Callable[..., Tensor] | None) -> Tensor:
        """Bool ``[R, 1, q, n]``; ``sees`` is a mask function of transformers, None: everything before."""
        query, key, end = self._indices
        zero = torch.zeros_like(end)
        seen = (key <= query) if sees is None else sees(zero, zero[:1], query, key)
        if self.blocks is not None:
            numbers = self.blocks[:, None]  # ``[R, 1, n]``
            own = numbers.gather(2, query[..., 0].clamp(max=self.reach - 1))[..., None]
            seen = seen | (own == numbers[:, :, None]) & (own > 0)
        return (seen & (key < end)).expand(len(self.rows), 1, self.most, self.reach)

    def attend(
        self,
        own: Callable[..., Any] | None,
        module: nn.Module,
        states: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        """Attention of one layer for the new tokens ``[1, h, T, d]`` -> ``[1, T, h, d]``.

        Args:
            own: the family's own attention function; None: SDPA.
            module: the layer's attention.
            states: query, key, value of the new tokens.
            mask: ``[R, 1, q, n]`` of :meth:`mask`, bool or (for ``own``) to be added; None: everything before.
            options: further arguments of transformers' attention functions.
        """
        query, key, value = states
        keys, values = self.slots.layer(self.calls, key[0], value[0])
        self.calls += 1
        if self.together:
            return self._padded(own, module, query, (key, value), (keys, values), mask, options)
        parts, first = [], 0
        for r, (row, start, count, end) in enumerate(zip(self.rows, self.starts, self.counts, self.ends, strict=True)):
            keys[row, :, start:end] = key[0, :, first : first + count]
            values[row, :, start:end] = value[0, :, first : first + count]
            k, v = keys[row : row + 1, :, :end], values[row : row + 1, :, :end]
            seen = self._plain_of(r) if mask is None else mask[r : r + 1, :, :count, :end]
            parts.append(_attention(own, module, query[:, :, first : first + count], k, v, seen, options))
            first += count
        return torch.cat(parts, 1)

    def _padded(
        self,
        own: Callable[..., Any] | None,
        module: nn.Module,
        query: Tensor,
        new: tuple[Tensor, Tensor],
        stored: tuple[Tensor, Tensor],
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        """As :meth:`attend`, all rows at once: a step in which each writes one token, or a few."""
        for there, states in zip(stored, new, strict=True):
            if len(self.rows) == 1:  # a third of the time of an index
                there[self.rows[0], :, self.starts[0] : self.ends[0]] = states[0]
            else:
                slot, place = self._at
                there[slot, :, place] = states[0].transpose(0, 1).to(there.dtype)
        rows = slice(self.rows[0], self.rows[0] + len(self.rows))
        keys, values = (there[rows, :, : self.reach] for there in stored)
        spread = query[0].transpose(0, 1)  # ``[T, h, d]``
        if self.most == 1:
            spread = spread[:, :, None]
        else:
            spread = spread[self._places[0]].unflatten(0, (-1, self.most)).transpose(1, 2)
        seen = self._plain_mask() if mask is None else mask
        out = _attention(own, module, spread, keys, values, seen, options).flatten(0, 1)
        return (out if self.most == 1 else out[self._places[1]])[None]

    def _plain_mask(self) -> Tensor | None:
        if self.most == 1 and min(self.ends) == self.reach:
            return None
        if -1 not in self._plain:
            self._plain[-1] = self.mask(None)
        return self._plain[-1]

    def _plain_of(self, row: int) -> Tensor:
        """Bool ``[1, 1, count, end]`` of one row: everything before."""
        if row not in self._plain:
            start, end = self.starts[row], self.ends[row]
            place = torch.arange(end, device=self.device)
            self._plain[row] = (place <= place[start:, None])[None, None]
        return self._plain[row]


def _attention(
    own: Callable[..., Any] | None,
    module: nn.Module,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """``query [R, h, q, d]``, ``keys`` and ``values [R, h', n, d]`` -> ``[R, q, h, d]``."""
    if own is not None:
        out: Tensor = own(module, query, keys, values, seen, **options)[0]
        return out
    rows, heads, most, width = query.shape
    groups = heads // keys.shape[1]
    if groups > 1:  # the heads that share keys become queries of one head
        query = query.reshape(rows, keys.shape[1], groups * most, width)
        seen = seen.repeat(1, 1, groups, 1) if seen is not None and most > 1 else seen
    found = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=options.get("scaling"))
    return found.reshape(rows, heads, most, -1).transpose(1, 2)
