"""How samples become batches in the main process: finished by a worker, sorted by length, or packed into rows.

Samples that are in no batch yet are pending. The state names them by reference only; they are read again on
resume.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlm.datasets.loading.mixing import derive_seed
from vlm.datasets.loading.sampler import Key
from vlm.datasets.loading.worker import EncodedSample, WorkerResult

Rows = list[list[EncodedSample]]
"""A batch to be collated: the samples of each row."""


class Assembler(Protocol):
    """Takes deliveries, gives batches."""

    def add(self, done: WorkerResult) -> None:
        """Take a delivery."""
        ...

    def pop(self) -> WorkerResult | Rows | None:
        """The next batch, finished or to be collated; None if more deliveries are needed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """References of what is pending, in groups: ``done`` (whole rows or batches) and ``open``; empty for none."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], items: Mapping[Key, EncodedSample]) -> None:
        """Have the pending samples again. ``items``: those named by the state."""
        ...


def pending(state: Mapping[str, Any]) -> list[Key]:
    """The samples that an assembler's state names, in order."""
    groups = [*state.get("done", []), *state.get("open", [])]
    return [(source, epoch, index) for group in groups for source, epoch, index in group]


def _keys(groups: Iterable[Sequence[EncodedSample]]) -> list[list[list[int]]]:
    return [[list(item.key) for item in group] for group in groups]


def _groups(names: Sequence[Sequence[Sequence[int]]], items: Mapping[Key, EncodedSample]) -> list[list[EncodedSample]]:
    return [[items[(source, epoch, index)] for source, epoch, index in group] for group in names]


class Passthrough:
    """Batches that workers have finished: nothing is ever pending."""

    def __init__(self) -> None:
        self._ready: deque[WorkerResult] = deque()

    def add(self, done: WorkerResult) -> None:
        """A batch."""
        if done.batch is not None:
            self._ready.append(done)

    def pop(self) -> WorkerResult | None:
        """The batch that came last."""
        return self._ready.popleft() if self._ready else None

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], items: Mapping[Key, EncodedSample]) -> None:
        """Nothing to do."""


class LengthGrouped:
    """Pools the samples of ``pool`` jobs, sorts them by length, cuts batches of neighbours, gives them in seeded order.

    With batch mixing (``sizes`` of several sources) a batch holds one source's samples only. What does not
    fill a batch waits for the next pool. While batches of one pool are given the next one fills, a job for each,
    so that workers are never idle.
    """

    def __init__(self, pool: int, sizes: Sequence[int], by_source: bool, seed: int) -> None:
        """``sizes``: samples of a batch, by source number with ``by_source``, else one number for all."""
        self._pool, self._sizes, self._by_source, self._seed = pool, list(sizes), by_source, seed
        self._ready: deque[list[EncodedSample]] = deque()
        self._held: list[EncodedSample] = []
        self._jobs = self._given = 0

    def add(self, done: WorkerResult) -> None:
        """Pool the items of a job; the last job of a pool makes its batches."""
        assert done.chunk is not None
        self._held += done.chunk.items
        self._jobs += 1
        if self._jobs >= self._pool:
            self._cut()

    def _cut(self) -> None:
        groups: dict[int, list[EncodedSample]] = {}
        for item in self._held:
            groups.setdefault(item.key[0] if self._by_source else 0, []).append(item)
        first = self._held[0].key
        self._held, self._jobs, self._given = [], 0, 0
        batches: list[list[EncodedSample]] = []
        for number, group in sorted(groups.items()):
            size = self._sizes[number]
            rest = len(group) % size
            self._held += group[len(group) - rest :]
            whole = sorted(group[: len(group) - rest], key=lambda item: item.tokens)
            batches += [whole[k : k + size] for k in range(0, len(whole), size)]
        random.Random(derive_seed(self._seed, "group", *first)).shuffle(batches)
        self._ready.extend(batches)

    def pop(self) -> Rows | None:
        """The next batch, one sample per row."""
        if not self._ready or self._jobs < self._given:
            return None
        self._given += 1
        return [[item] for item in self._ready.popleft()]

    def state_dict(self) -> dict[str, Any]:
        """Batches not given yet, the next pool so far, and how far either has come."""
        counts = {"jobs": self._jobs, "given": self._given}
        return {"done": _keys(self._ready), "open": _keys([self._held]), **counts}

    def load_state_dict(self, state: Mapping[str, Any], items: Mapping[Key, EncodedSample]) -> None:
        """As they were."""
        self._ready = deque(_groups(state.get("done", []), items))
        self._held = [item for group in _groups(state.get("open", []), items) for item in group]
        self._jobs, self._given = state.get("jobs", 0), state.get("given", 0)


PATIENCE = 8
"""A row is open while at most so many times ``open_rows`` others are done."""


@dataclass(eq=False)
class Row:
    """A row being filled; ``passed``: rows that were done while it was open."""

    items: list[EncodedSample] = field(default_factory=list)
    tokens: int = 0
    media: int = 0
    passed: int = 0

    def add(self, item: EncodedSample) -> None:
        """One more sample."""
        self.items.append(item)
        self.tokens += item.tokens
        self.media += len(item.example.media)


class FirstFitPacker:
    """First fit over open rows: a sample goes into the first row with room for its tokens and media.

    When there is none and ``open_rows`` are open, the fullest row (by tokens or media) is done and a new one is
    opened; a row that was passed over for long is done even if others are fuller, so that no sample waits for
    ever. A batch is ``batch_size`` rows that are done.
    """

    def __init__(self, max_tokens: int, max_media: int | None, open_rows: int, batch_size: int) -> None:
        self._max_tokens, self._max_media = max_tokens, max_media
        self._open_rows, self._batch_size = open_rows, batch_size
        self._open: list[Row] = []
        self._done: deque[list[EncodedSample]] = deque()

    def add(self, done: WorkerResult) -> None:
        """Place the items of a job."""
        assert done.chunk is not None
        for item in done.chunk.items:
            self._place(item)

    def _place(self, item: EncodedSample) -> None:
        row = next((row for row in self._open if self._fits(row, item)), None)
        if row is None:
            if len(self._open) == self._open_rows:
                self._close_one()
            row = Row()
            self._open.append(row)
        row.add(item)

    def _close_one(self) -> None:
        oldest = self._open[0]  # rows are in the order in which they were opened
        late = oldest.passed >= PATIENCE * self._open_rows
        row = oldest if late else max(self._open, key=self._fullness)
        self._open.remove(row)
        self._done.append(row.items)
        for other in self._open:
            other.passed += 1

    def _fullness(self, row: Row) -> float:
        return max(row.tokens / self._max_tokens, row.media / self._max_media if self._max_media else 0.0)

    def _fits(self, row: Row, item: EncodedSample) -> bool:
        media = row.media + len(item.example.media)
        return row.tokens + item.tokens <= self._max_tokens and (self._max_media is None or media <= self._max_media)

    def pop(self) -> Rows | None:
        """The next batch, once enough rows are done."""
        if len(self._done) < self._batch_size:
            return None
        return [self._done.popleft() for _ in range(self._batch_size)]

    @property
    def _limits(self) -> list[int | None]:
        return [self._max_tokens, self._max_media, self._open_rows]

    def state_dict(self) -> dict[str, Any]:
        """Rows that are done or open, and the limits they were made for."""
        rows = {"done": _keys(self._done), "open": _keys([r.items for r in self._open])}
        return {**rows, "passed": [r.passed for r in self._open], "limits": self._limits}

    def load_state_dict(self, state: Mapping[str, Any], items: Mapping[Key, EncodedSample]) -> None:
        """As they were; made for other limits, the samples are placed anew."""
        self._done, self._open = deque(), []
        if state.get("limits", self._limits) != self._limits:
            for key in pending(state):
                self._place(items[key])
            return
        self._done.extend(_groups(state.get("done", []), items))
        groups = _groups(state.get("open", []), items)
        for group, passed in zip(groups, state.get("passed", []), strict=True):
            row = Row(passed=passed)
            for item in group:
                row.add(item)
            self._open.append(row)
