"""Rows that share the calls of the language model: prompts in pieces, written tokens together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm.inference.batching.prefixes import PrefixCache, cuts_of, keys_of
from vlm.inference.batching.row import Row
from vlm.inference.batching.stats import Stats
from vlm.models.inserts.base import InsertData
from vlm.models.llm.hf import HFCausalLM
from vlm.models.llm.packing import base_of, mixes_by_attention, takes_positions, uses_interface
from vlm.models.llm.slots import SlotLayout, Slots
from vlm.models.precision import autocast
from vlm.models.protocols import JoinsData

if TYPE_CHECKING:
    from vlm.config.run import Serving
    from vlm.models.vlm import VLM


SHORT = 32
"""Positions that are not worth a second call in a step for which many wait; the next step reads them with others."""
MANY = 8
"""Rows that write, from which on they are many."""


class SharedRows:
    """The rows whose keys and values are in slots: first those that write, then those whose prompt is being read.

    Row number and slot are the same, so that the rows that write lie side by side in memory.
    """

    def __init__(self, model: VLM, serving: Serving, prefixes: PrefixCache | None, limit: int, stats: Stats) -> None:
        """``limit``: bytes of keys and values, 0: none; ``stats``: where calls are counted."""
        self.model = model
        self.serving = serving
        self.prefixes = prefixes
        self.limit = limit
        self.stats = stats
        self.slots = Slots()
        self.rows: list[Row] = []
        self.writing = 0
        self.is_calling = False  # and nothing has changed in this step; or so it was when an error came
        self._over: list[tuple[Row, Tensor]] = []  # in this step, by prompts that have been read
        self._joined: tuple[list[Any], InsertData | None] = ([], None)
        self._joins = isinstance(model.fusion, JoinsData) or not any(i.needs_data for i in model.inserts)

    def fits(self, row: Row) -> bool:
        """Whether there is room for one more row, even if every answer becomes as long as it may."""
        rows = len(self.rows) + 1
        if rows > self.serving.max_batch:
            return False
        longest = max(row.need, *(r.need for r in self.rows), 0)
        fits = not self.limit or rows * longest * self.slots.position_bytes <= self.limit
        if rows == 1 and self.limit and self.slots.bytes > self.limit:
            self.slots = Slots()  # those that longer answers needed
        return fits or rows == 1

    def begin(self, row: Row) -> None:
        """Take in a row, with what is known of its prompt."""
        prompt = row.prompt
        assert prompt is not None
        row.slot = len(self.rows)
        self.rows.append(row)
        row.next_position = int(prompt.positions.max()) + 1
        row.after = prompt.inserts and prompt.inserts.step()
        if self.prefixes is None or not self.prefixes.limit:
            row.cuts = cuts_of(prompt, self.serving.prefill, keeps=False)
            return
        row.cuts = cuts_of(prompt, self.serving.block)
        row.keys, row.age = keys_of(prompt, row.cuts, row.asking.tenant), self.prefixes.age
        pieces = self.prefixes.find(row.keys)
        ends = [cut.end for cut in row.cuts if cut.kept][: len(pieces)]
        if ends:
            self._layout([row], [0], [ends[-1]])
        for piece, first in zip(pieces, [0, *ends], strict=False):
            self.slots.write(row.slot, first, piece)
        row.done = row.answer.usage.cached = ends[-1] if ends else 0
        self.stats.cached_tokens += row.done

    def read(self, budget: int) -> list[tuple[Row, Tensor]]:
        """Read about ``budget`` positions of the prompts; rows whose prompt is over, with logits ``[vocab]``."""
        taken = 0
        while budget > 0 and (waiting := self.rows[self.writing :]):
            left = sum(self._next(row) - row.done for row in waiting)
            if taken and left < SHORT and self.writing >= MANY:
                break
            rows: list[Row] = []
            taken = 0
            for row in waiting:
                count = self._next(row) - row.done
                if rows and (taken + count > budget or not self._joins):
                    break
                rows.append(row)
                taken += count
            budget -= taken
            self._over += self._read(rows)
        over, self._over = self._over, []
        return over

    @staticmethod
    def _next(row: Row) -> int:
        return next(cut.end for cut in row.cuts if cut.end > row.done)

    def _read(self, rows: Sequence[Row]) -> list[tuple[Row, Tensor]]:
        """One piece of each prompt in one call."""
        prompts = [row.prompt for row in rows]
        spans = [(row.done, self._next(row)) for row in rows]
        embeds, positions, parts = [], [], []
        for prompt, (first, last) in zip(prompts, spans, strict=True):
            assert prompt is not None
            embeds.append(prompt.embeds[0, first:last])
            positions.append(prompt.positions[0, first:last])
            if prompt.inserts is not None:
                parts.append(prompt.inserts.moved(lambda t, a=first, b=last: t[:, a:b]))  # type: ignore[misc]
        counts = [last - first for first, last in spans]
        ends = torch.tensor(counts).cumsum(0) - 1
        layout = self._layout(rows, [first for first, _ in spans], counts)
        layout.blocks = _blocks(rows, layout.reach)
        ready = [i for i, (row, (_, last)) in enumerate(zip(rows, spans, strict=True)) if last == row.length]
        layout.keep = ends[ready or [-1]].to(self.model.device)  # what comes last is not computed for other tokens
        inputs = (torch.cat(embeds), torch.cat(positions), self._join(parts), layout)
        logits = self._call(*inputs, predicts=bool(ready))
        for row, (_, last) in zip(rows, spans, strict=True):
            self._keep(row, last)
            row.done = last
        over = [(rows[i], logits[k]) for k, i in enumerate(ready)]
        for row, _ in over:
            row.prompt = None
        for row, _ in over:
            self._swap(row.slot, self.writing)
            self.writing += 1
        return over

    def _keep(self, row: Row, end: int) -> None:
        """Put what a cut ends into the cache of prefixes."""
        if not row.keys or self.prefixes is None:
            return
        ends = [cut.end for cut in row.cuts if cut.kept]
        if end in ends and not self.prefixes.knows(key := row.keys[ends.index(end)]):
            before = [e for e in ends if e < end]
            self.prefixes.add(key, self.slots.read(row.slot, before[-1] if before else 0, end), row.age)

    def write(self, guesses: Sequence[Sequence[int]]) -> list[Tensor]:
        """Read the last token of each row that writes, and after it the tokens guessed for it.

        Returns logits ``[1 + guesses, vocab]`` of each row. What is not added to an answer is read again.
        """
        rows = self.rows[: self.writing]
        if not self._joins and len(rows) > 1:
            return [self._write([row], [guess])[0] for row, guess in zip(rows, guesses, strict=True)]
        return self._write(rows, guesses)

    def _write(self, rows: Sequence[Row], guesses: Sequence[Sequence[int]]) -> list[Tensor]:
        tokens = [[row.answer.ids[-1], *guess] for row, guess in zip(rows, guesses, strict=True)]
        counts = [len(t) for t in tokens]
        first = [row.next_position + len(row.answer.ids) - 1 for row in rows]
        device = self.model.device
        positions = torch.tensor([p + i for p, n in zip(first, counts, strict=True) for i in range(n)], device=device)
        ids = torch.tensor([t for row in tokens for t in row], device=device)
        layout = self._layout(rows, [row.held for row in rows], counts)
        parts = [row.after for row in rows if row.after is not None]
        inserts = self._joined_after(parts) if max(counts) == 1 else self._join(_repeated(parts, counts))
        axes = self.model.llm.position_axes
        if axes > 1:
            positions = positions[:, None].expand(-1, axes)
        embeds = self.model.llm.embed(ids)
        return list(self._call(embeds, positions, inserts, layout).split(counts))

    def remove(self, row: Row) -> None:
        """Forget a row; another takes its slot."""
        self._clear(row)
        if row.slot < self.writing:
            self.writing -= 1
            self._fill(row, self.writing)
        self._fill(row, len(self.rows) - 1)
        self.rows.pop()
        row.slot = -1

    def drop(self) -> list[Row]:
        """Forget all rows and their memory, after an error; those that there were."""
        rows, self.rows, self.writing, self.slots = self.rows, [], 0, Slots()
        self._joined, self._over = ([], None), []
        return rows

    def _clear(self, row: Row) -> None:
        self.slots.clear(row.slot, row.held + 1 + self.serving.lookup)

    def _fill(self, gone: Row, last: int) -> None:
        """Put the row of slot ``last`` into the slot of a row that is gone."""
        if gone.slot == last:
            return
        other, slot = self.rows[last], gone.slot
        self.slots.move(last, slot, other.held)
        self._clear(other)
        self.rows[slot], self.rows[last] = other, gone
        other.slot, gone.slot = slot, last

    def _swap(self, a: int, b: int) -> None:
        """Exchange two rows."""
        if a == b:
            return
        rows = self.rows[a], self.rows[b]
        held = [self.slots.read(row.slot, 0, row.held) for row in rows]
        for row in rows:
            self._clear(row)
        for row, slot, piece in zip(rows, (b, a), held, strict=True):
            self.slots.write(slot, 0, piece)
            row.slot = slot
            self.rows[slot] = row

    def _layout(self, rows: Sequence[Row], starts: Sequence[int], counts: Sequence[int]) -> SlotLayout:
        reach = max(start + count for start, count in zip(starts, counts, strict=True))
        count = len(self.rows)
        if count > self.slots.rows:  # doubled, so that what is there is not copied for each new row
            count = max(count, min(2 * self.slots.rows, self.serving.max_batch))
        self.slots.reserve(count, reach)
        return SlotLayout(self.slots, [row.slot for row in rows], starts, counts, self.model.device)

    def _call(
        self,
        embeds: Tensor,
        positions: Tensor,
        inserts: InsertData | None,
        layout: SlotLayout,
        predicts: bool = True,
    ) -> Tensor:
        """Logits ``[t, vocab]`` in float32; without ``predicts`` none are needed."""
        self.stats.steps += 1
        llm = self.model.llm
        self.is_calling = not self._over
        with autocast(embeds.device, self.model.compute_dtype):
            hidden: Tensor = llm.lengthen(embeds, positions, inserts, layout)
            logits = llm.head(hidden).float() if predicts else hidden
        self.is_calling = False
        return logits

    def _join(self, parts: Sequence[InsertData]) -> InsertData | None:
        if len(parts) < 2:
            return parts[0] if parts else None
        if not any(part.tokens for part in parts):
            return parts[0]
        fusion = self.model.fusion
        assert isinstance(fusion, JoinsData)
        return fusion.join_data(parts)

    def _joined_after(self, parts: list[InsertData]) -> InsertData | None:
        """The joined data of the same rows as in the last step, which do not change while no row comes or goes."""
        known, joined = self._joined
        if len(known) != len(parts) or any(a is not b for a, b in zip(known, parts, strict=True)):
            joined = self._join(parts)
            self._joined = (parts, joined)
        return joined


def _repeated(parts: Sequence[InsertData], counts: Sequence[int]) -> list[InsertData]:
    return [
        part.moved(lambda t, n=n: t.repeat_interleave(n, 1))  # type: ignore[misc]
        for part, n in zip(parts, counts, strict=False)
    ]


def _blocks(rows: Sequence[Row], reach: int) -> Tensor | None:
    """``[R, reach]`` of the prompts' blocks; None: all causal."""
    own = [None if row.prompt is None else row.prompt.blocks for row in rows]
    known = next((b for b in own if b is not None), None)
    if known is None:
        return None
    table = known.new_zeros(len(rows), reach)
    for i, numbers in enumerate(own):
        if numbers is not None:
            count = min(reach, numbers.shape[1])
            table[i, :count] = numbers[0, :count]
    return table


def can_share(model: VLM) -> bool:
    """Whether rows of a model can share calls: attention by our interface, given positions, nothing else that mixes.

    Families with rotary positions are known to; for others a few tokens are read both ways.
    """
    llm = model.llm
    if not isinstance(llm, HFCausalLM) or not uses_interface(llm.model) or not mixes_by_attention(llm.model):
        return False
    if not takes_positions(base_of(llm.model)):
        return False
    return llm.packs or _reads_alike(model)


@torch.inference_mode()
def _reads_alike(model: VLM) -> bool:
    """Whether two rows read in pieces, in shared calls, give the hidden states that one row alone gives."""
    llm, device = model.llm, model.device
    ids = (torch.arange(8, device=device) * 7 + 3) % llm.vocab_size
    place = torch.arange(8, device=device)
    if llm.position_axes > 1:
        place = place[:, None].expand(-1, llm.position_axes)
    embeds, slots = llm.embed(ids), Slots()
    found: list[list[Tensor]] = [[], []]
    with autocast(device, model.compute_dtype):
        for starts, counts in (([0, 0], [5, 3]), ([5, 3], [1, 1]), ([6, 4], [2, 4])):
            parts = [slice(s, s + c) for s, c in zip(starts, counts, strict=True)]
            slots.reserve(2, 8)
            layout = SlotLayout(slots, [0, 1], starts, counts, device)
            inserts = InsertData() if any(i.needs_data for i in model.inserts) else None
            given = (torch.cat([embeds[p] for p in parts]), torch.cat([place[p] for p in parts]))
            hidden = llm.lengthen(*given, inserts, layout)
            if layout.calls == 0:
                return False
            for rows, part in zip(found, hidden.split(counts), strict=True):
                rows.append(part)
        segments = torch.ones(1, 8, dtype=torch.long, device=device)
        from vlm.models.fusion.base import LLMInputs

        whole = llm(LLMInputs(embeds[None], segments, place[None], segments * 0 - 100, inserts=inserts))[0].float()
    error = max(float((torch.cat(rows).float() - whole).abs().max()) for rows in found)
    return error <= (1e-3 if model.compute_dtype is torch.float32 else 0.1) * float(whole.abs().max())
