"""Which records make which batch. Lives in the main process; workers only get its jobs.

All decisions follow from (seed, step) and a few counters, so that state is small and a run resumed at
any batch goes on exactly, whatever the number of workers or processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlm.common.errors import DataError
from vlm.datasets.base import MapDataset, StreamDataset
from vlm.datasets.mixing import derive_seed, draw_source

SPARES = 3
"""Stream records sent along with a batch in case one of its own cannot be used."""


@dataclass(frozen=True)
class Ref:
    """One sample: its pass over the dataset, its index (place in the pass for a stream), its raw record."""

    epoch: int
    index: int
    raw: Any = None


@dataclass(frozen=True)
class Job:
    """A batch to make: source number, this rank's references with their places in the global batch, spares."""

    step: int
    source: int
    refs: tuple[tuple[int, Ref], ...]
    spares: tuple[Ref, ...] = ()


def empty(name: str) -> DataError:
    """The error for a dataset without records."""
    return DataError(f"dataset {name} is empty: 0 records", fix="check the paths under its build_info")


class MapCursor:
    """Endless shuffled passes over a map-style dataset; position p is element p % n of pass p // n."""

    def __init__(self, name: str, dataset: MapDataset, seed: int) -> None:
        """Raises DataError when the dataset is empty."""
        self.name, self.length, self._seed = name, len(dataset), seed
        if self.length == 0:
            raise empty(name)
        self._position = 0
        self._order: tuple[int, np.ndarray] | None = None

    def take(self, count: int) -> tuple[list[Ref], list[Ref]]:
        """The next ``count`` references; no spares (a worker can read any index)."""
        refs = [self._ref(p) for p in range(self._position, self._position + count)]
        self._position += count
        return refs, []

    def _ref(self, position: int) -> Ref:
        epoch, place = divmod(position, self.length)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "order", self.name, epoch)))
            self._order = (epoch, rng.permutation(self.length))
        return Ref(epoch, int(self._order[1][place]))

    def state_dict(self) -> dict[str, int]:
        """Samples taken so far, and the length they refer to."""
        return {"position": self._position, "length": self.length}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises DataError when the dataset has another length than it had."""
        if state.get("length") != self.length:
            raise DataError(
                f"dataset {self.name} has {self.length} records but the saved run had {state.get('length')}",
                fix="resume with the same data, or start a new run from the checkpoint's weights",
            )
        self._position = state["position"]


class StreamCursor:
    """Endless seeded passes over a stream; resumes by skipping undecoded records of the current pass."""

    def __init__(self, name: str, dataset: StreamDataset, seed: int) -> None:
        """Raises DataError when the first pass has no record."""
        self.name, self._dataset, self._seed = name, dataset, seed
        self._epoch, self._offset = 0, 0
        self._ahead: deque[Ref] = deque()
        self._reader = self._read(0, 0)
        self._fill(1)

    def take(self, count: int) -> tuple[list[Ref], list[Ref]]:
        """The next ``count`` references, and the few that come after them as spares."""
        self._fill(count + SPARES)
        refs = [self._ahead.popleft() for _ in range(count)]
        self._epoch, self._offset = refs[-1].epoch, refs[-1].index + 1
        return refs, [self._ahead[i] for i in range(SPARES)]

    def _fill(self, count: int) -> None:
        while len(self._ahead) < count:
            self._ahead.append(next(self._reader))

    def _read(self, epoch: int, skip: int) -> Iterator[Ref]:
        while True:
            index = -1
            records = self._dataset.records(derive_seed(self._seed, "order", self.name, epoch))
            for index, raw in enumerate(records):
                if index >= skip:
                    yield Ref(epoch, index, raw)
            if index < 0:
                raise empty(self.name)
            epoch, skip = epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The pass, and the records of it that were taken."""
        return {"epoch": self._epoch, "offset": self._offset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skips to the stored place."""
        self._epoch, self._offset = state["epoch"], state["offset"]
        self._ahead.clear()
        self._reader = self._read(self._epoch, self._offset)


def cursor(name: str, dataset: Any, seed: int) -> MapCursor | StreamCursor:
    """The cursor for a dataset of either kind.

    Raises:
        DataError: the dataset is empty, or of neither kind.
    """
    if isinstance(dataset, StreamDataset):
        return StreamCursor(name, dataset, seed)
    if isinstance(dataset, MapDataset):
        return MapCursor(name, dataset, seed)
    raise DataError(
        f"dataset {name}: {type(dataset).__name__} has neither __len__ and __getitem__ nor records and decode",
        fix="see vlm/datasets/base.py for what a format provides",
    )


@dataclass
class JobSampler:
    """Endless jobs of one rank, each followed by the sampler's state after it.

    ``batch_sizes`` are per rank; the global batch of a step is cut ``r::world_size``.
    """

    cursors: Sequence[MapCursor | StreamCursor]
    batch_sizes: Sequence[int]
    weights: Sequence[float]
    seed: int
    rank: int = 0
    world_size: int = 1
    step: int = 0
    states: deque[dict[str, Any]] = field(default_factory=deque)

    def __iter__(self) -> Iterator[Job]:
        """Goes on from the current state; the state after each job is appended to ``states``."""
        while True:
            source = draw_source(self.seed, self.step, self.weights)
            refs, spares = self.cursors[source].take(self.batch_sizes[source] * self.world_size)
            mine = tuple(enumerate(refs))[self.rank :: self.world_size]
            job = Job(self.step, source, mine, tuple(spares))
            self.step += 1
            self.states.append(self.state_dict())
            yield job

    def state_dict(self) -> dict[str, Any]:
        """Step and cursors; a few integers per dataset."""
        return {"step": self.step, "sources": {c.name: c.state_dict() for c in self.cursors}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DataError when the saved run had other datasets."""
        ours = [c.name for c in self.cursors]
        if sorted(state["sources"]) != sorted(ours):
            raise DataError(
                f"the saved run had the datasets {sorted(state['sources'])}, this one has {sorted(ours)}",
                fix="resume with the same data, or start a new run from the checkpoint's weights",
            )
        self.step = state["step"]
        self.states.clear()
        for c in self.cursors:
            c.load_state_dict(state["sources"][c.name])
