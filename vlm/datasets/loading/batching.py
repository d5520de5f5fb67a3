"""How samples become batches in the main process: job by job, grouped by length, or packed into rows.

Samples that are in no batch yet are pending. The state names them by reference only; they are read again on
resume.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from vlm.common.types import Batch
from vlm.datasets.loading.mixing import derive_seed
from vlm.datasets.loading.sampler import Key
from vlm.datasets.loading.worker import EncodedSample, WorkerResult
from vlm.processors.collate import collate_rows, finalize_pixels, unify_dtypes
from vlm.processors.processor import Processor

BatchRows = list[list[EncodedSample]]
"""A batch to be collated: the samples of each row."""


def make_batch(rows: BatchRows, processor: Processor, pin_memory: bool = False) -> Batch:
    """The batch of these rows, with float pixels; in pinned host memory if ``pin_memory``.

    Raises DataError: media of different sizes, or placeholders and media of a sample differ.
    """
    normalize = partial(processor.image.normalize, pin_memory=pin_memory)
    unify_dtypes([sample.example for row in rows for sample in row], normalize)
    batch = collate_rows([[sample.example for sample in row] for row in rows], processor.pad_id)
    batch = replace(finalize_pixels(batch, normalize), sample_keys=[sample.key for row in rows for sample in row])
    return batch.pin_memory() if pin_memory else batch


class Assembler:
    """Takes the samples of jobs, gives batches; here every job is a batch, one sample per row, and nothing is pending.

    ``_done`` holds the rows, or the batches of single-sample rows, that are ready.
    """

    def __init__(self) -> None:
        self._done: deque[list[EncodedSample]] = deque()
        self._last = False  # the job taken last was its step's last

    def add(self, result: WorkerResult) -> None:
        """Take the samples of a job."""
        if result.samples:
            self._done.append(result.samples)
        self._last = result.last

    @property
    def step_done(self) -> bool:
        """With ``run.global_batch``: whether all micro-batches of the step have been given."""
        return self._last and not self._done

    def pop(self) -> BatchRows | None:
        """The next batch; None if more samples are needed."""
        return [[sample] for sample in self._done.popleft()] if self._done else None

    def state_dict(self) -> dict[str, Any]:
        """References of pending samples: ``done`` (whole rows or batches) and ``open``; empty if there are none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], samples: Mapping[Key, EncodedSample]) -> None:
        """Restore the pending samples. ``samples``: those named by the state, which is not empty."""


def pending(state: Mapping[str, Any]) -> list[Key]:
    """The samples that an assembler's state names, in order."""
    groups = [*state.get("done", []), *state.get("open", [])]
    return [(source, epoch, index) for group in groups for source, epoch, index in group]


def _keys(groups: Iterable[Sequence[EncodedSample]]) -> list[list[list[int]]]:
    return [[list(sample.key) for sample in group] for group in groups]


def _groups(
    names: Sequence[Sequence[Sequence[int]]], samples: Mapping[Key, EncodedSample]
) -> list[list[EncodedSample]]:
    return [[samples[(source, epoch, index)] for source, epoch, index in group] for group in names]


class LengthGrouped(Assembler):
    """Pools the samples of ``pool`` jobs, sorts them by length and cuts batches of neighbours, given in seeded order.

    With batch mixing (``by_source``) a batch has samples of one source only. Samples that do not fill a batch wait for
    the next pool. The next pool fills, one job per batch, while the batches of a pool are given, so workers never idle.
    """

    def __init__(self, pool: int, sizes: Sequence[int], by_source: bool, seed: int) -> None:
        """``sizes``: samples of a batch, by source number with ``by_source``, else one number for all."""
        super().__init__()
        self._pool, self._sizes, self._by_source, self._seed = pool, list(sizes), by_source, seed
        self._pooled: list[EncodedSample] = []
        self._jobs = self._given = 0

    def add(self, result: WorkerResult) -> None:
        """Pool the samples of a job; the last job of a pool makes its batches."""
        self._pooled += result.owned()
        self._jobs += 1
        if self._jobs >= self._pool:
            self._cut()

    def _cut(self) -> None:
        groups = defaultdict[int, list[EncodedSample]](list)
        for sample in self._pooled:
            groups[sample.key[0] if self._by_source else 0].append(sample)
        first = self._pooled[0].key
        self._pooled, self._jobs, self._given = [], 0, 0
        batches: list[list[EncodedSample]] = []
        for number, group in sorted(groups.items()):
            size = self._sizes[number]
            rest = len(group) % size
            self._pooled += group[len(group) - rest :]
            whole = sorted(group[: len(group) - rest], key=lambda sample: sample.tokens)
            batches += [whole[k : k + size] for k in range(0, len(whole), size)]
        random.Random(derive_seed(self._seed, "group", *first)).shuffle(batches)
        self._done.extend(batches)

    def pop(self) -> BatchRows | None:
        """The next batch, one sample per row."""
        if not self._done or self._jobs < self._given:
            return None
        self._given += 1
        return super().pop()

    def state_dict(self) -> dict[str, Any]:
        """Batches not given yet, the samples of the next pool, and how many jobs and batches this pool has seen."""
        counts = {"jobs": self._jobs, "given": self._given}
        return {"done": _keys(self._done), "open": _keys([self._pooled]), **counts}

    def load_state_dict(self, state: Mapping[str, Any], samples: Mapping[Key, EncodedSample]) -> None:
        """Restore them."""
        self._done = deque(_groups(state["done"], samples))
        self._pooled = [sample for group in _groups(state["open"], samples) for sample in group]
        self._jobs, self._given = state.get("jobs", 0), state.get("given", 0)


PATIENCE = 8
"""A row is closed once ``PATIENCE * open_rows`` other rows have been closed while it was open."""


@dataclass(eq=False)
class OpenRow:
    """A row being filled; ``passed``: rows that were closed while it was open."""

    samples: list[EncodedSample] = field(default_factory=list)
    tokens: int = 0
    media: int = 0
    passed: int = 0

    def add(self, sample: EncodedSample) -> None:
        """Append a sample."""
        self.samples.append(sample)
        self.tokens += sample.tokens
        self.media += len(sample.example.media)

    def has_room(self, sample: EncodedSample, max_tokens: int, max_media: int | None) -> bool:
        """Whether a sample fits in."""
        media = self.media + len(sample.example.media)
        return self.tokens + sample.tokens <= max_tokens and (max_media is None or media <= max_media)


class FirstFitPacker(Assembler):
    """First fit over open rows: a sample goes into the first row with room for its tokens and media.

    If there is none and ``open_rows`` rows are open, the fullest (by tokens or media) is closed and a new one opened. A
    row that has been open for long is closed even if others are fuller, so that no sample waits for ever. A batch is
    ``batch_size`` closed rows.
    """

    def __init__(self, max_tokens: int, max_media: int | None, open_rows: int, batch_size: int) -> None:
        super().__init__()
        self._max_tokens, self._max_media = max_tokens, max_media
        self._open_rows, self._batch_size = open_rows, batch_size
        self._limits = [max_tokens, max_media, open_rows]
        self._open: list[OpenRow] = []

    def add(self, result: WorkerResult) -> None:
        """Place the samples of a job."""
        for sample in result.owned():
            self._place(sample)

    def _place(self, sample: EncodedSample) -> None:
        row = next((row for row in self._open if row.has_room(sample, self._max_tokens, self._max_media)), None)
        if row is None:
            if len(self._open) == self._open_rows:
                self._close_one()
            row = OpenRow()
            self._open.append(row)
        row.add(sample)

    def _close_one(self) -> None:
        oldest = self._open[0]  # rows are in the order in which they were opened
        late = oldest.passed >= PATIENCE * self._open_rows
        row = oldest if late else max(self._open, key=self._fullness)
        self._open.remove(row)
        self._done.append(row.samples)
        for other in self._open:
            other.passed += 1

    def _fullness(self, row: OpenRow) -> float:
        return max(row.tokens / self._max_tokens, row.media / self._max_media if self._max_media else 0.0)

    def pop(self) -> BatchRows | None:
        """The next batch, once enough rows are closed."""
        if len(self._done) < self._batch_size:
            return None
        return [self._done.popleft() for _ in range(self._batch_size)]

    def state_dict(self) -> dict[str, Any]:
        """Closed and open rows, and the limits they were made for."""
        rows = {"done": _keys(self._done), "open": _keys([r.samples for r in self._open])}
        return {**rows, "passed": [r.passed for r in self._open], "limits": self._limits}

    def load_state_dict(self, state: Mapping[str, Any], samples: Mapping[Key, EncodedSample]) -> None:
        """Restore the rows; if they were made for other limits, place their samples again."""
        self._done, self._open = deque(), []
        if "passed" not in state or state.get("limits", self._limits) != self._limits:
            for key in pending(state):
                self._place(samples[key])
            return
        self._done.extend(_groups(state["done"], samples))
        for group, passed in zip(_groups(state["open"], samples), state["passed"], strict=True):
            row = OpenRow(passed=passed)
            for sample in group:
                row.add(sample)
            self._open.append(row)
