"""Which records make which batch. Lives in the main process; workers only receive its jobs.

All decisions follow from (seed, position) and a few counters, so the state is small and a run can resume exactly after
any batch, with any number of workers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlm.common.errors import DataError
from vlm.datasets.base import MapDataset, StreamDataset, not_a_dataset
from vlm.datasets.loading.mixing import MixingPolicy, derive_seed

LOOKAHEAD = 3
"""Stream records sent along with a job to replace bad ones."""

CHUNK = 8
"""Samples of a job that does not make a batch by itself."""

SAME_DATA = "resume with the same data, or start a new run from the checkpoint's weights"

Key = tuple[int, int, int]
"""A sample's reference without its record: source number, pass, index."""


@dataclass(frozen=True)
class Ref:
    """One sample: pass over the dataset, index (for a stream: position in the pass), raw record, source number."""

    epoch: int
    index: int
    raw: Any = None
    source: int = 0

    @property
    def key(self) -> Key:
        """The reference without its record."""
        return (self.source, self.epoch, self.index)

    @property
    def name(self) -> str:
        """How messages name the record."""
        return str(self.raw.key if hasattr(self.raw, "key") else self.index)


@dataclass(frozen=True)
class Job:
    """Samples to read: this rank's references with their places in the global job, and lookahead by source.

    ``restore``: the samples had been read before the run was interrupted, so none of them may be replaced now.
    ``last``: with ``run.global_batch``, this rank's last job of a step.
    ``spare``: what replaces a bad record of a stream when all lookahead is bad; None: the job's other references.
    """

    refs: tuple[tuple[int, Ref], ...]
    lookahead: dict[int, tuple[Ref, ...]] = field(default_factory=dict)
    restore: bool = False
    last: bool = False
    spare: tuple[Ref, ...] | None = None


def empty(name: str) -> DataError:
    """The error for a dataset without records."""
    return DataError(f"dataset {name} is empty: 0 records", fix="check the paths under its build_info")


class MapCursor:
    """Endless shuffled passes over a map-style dataset; position p is element p % n of pass p // n."""

    def __init__(self, name: str, dataset: MapDataset, seed: int, number: int = 0) -> None:
        """``number`` of the source. Raises DataError when the dataset is empty."""
        self.name, self.length, self._seed, self._number = name, len(dataset), seed, number
        if self.length == 0:
            raise empty(name)
        self.position = 0
        self._order: tuple[int, np.ndarray] | None = None

    def take(self, count: int) -> list[Ref]:
        """The next ``count`` references."""
        self.position += count
        return [self._ref(p) for p in range(self.position - count, self.position)]

    def _ref(self, position: int) -> Ref:
        epoch, place = divmod(position, self.length)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "order", self.name, epoch)))
            self._order = (epoch, rng.permutation(self.length))
        return Ref(epoch, int(self._order[1][place]), None, self._number)

    def lookahead(self) -> tuple[Ref, ...]:
        """Empty: a worker can read any index."""
        return ()

    def state_dict(self) -> dict[str, int]:
        """Samples taken so far, and the dataset's length."""
        return {"position": self.position, "length": self.length}

    def check(self, state: dict[str, int]) -> None:
        """Raises DataError when the dataset's length has changed."""
        if state.get("length") != self.length:
            raise DataError(
                f"dataset {self.name} has {self.length} records but the saved run had {state.get('length')}",
                fix=SAME_DATA,
            )

    def load_state_dict(self, state: dict[str, int], needed: Iterable[Key] = ()) -> dict[Key, Ref]:
        """Move to the stored position and return the references of ``needed``. Raises as :meth:`check`."""
        self.check(state)
        self.position = state["position"]
        return {(s, e, i): Ref(e, i, None, s) for s, e, i in needed}


class StreamCursor:
    """Endless seeded passes over a stream; resumes by skipping undecoded records of the current pass."""

    position = 0  # not counted

    def __init__(self, name: str, dataset: StreamDataset, seed: int, number: int = 0) -> None:
        """``number`` of the source. Raises DataError when the first pass has no record."""
        self.name, self._dataset, self._seed, self._number = name, dataset, seed, number
        self._epoch, self._offset = 0, 0
        self._ahead: deque[Ref] = deque()
        self._reader = self._read(0, 0)
        self._fill(1)

    def take(self, count: int) -> list[Ref]:
        """The next ``count`` references."""
        self._fill(count)
        refs = [self._ahead.popleft() for _ in range(count)]
        self._epoch, self._offset = refs[-1].epoch, refs[-1].index + 1
        return refs

    def lookahead(self) -> tuple[Ref, ...]:
        """The next few records."""
        self._fill(LOOKAHEAD)
        return tuple(self._ahead[i] for i in range(LOOKAHEAD))

    def _fill(self, count: int) -> None:
        while len(self._ahead) < count:
            self._ahead.append(next(self._reader))

    def _read(self, epoch: int, skip: int) -> Iterator[Ref]:
        while True:
            index = -1
            records = self._dataset.records(derive_seed(self._seed, "order", self.name, epoch))
            for index, raw in enumerate(records):
                if index >= skip:
                    yield Ref(epoch, index, raw, self._number)
            if index < 0:
                raise empty(self.name)
            epoch, skip = epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The pass, and how many of its records were taken."""
        return {"epoch": self._epoch, "offset": self._offset}

    def check(self, state: dict[str, int]) -> None:
        """Nothing to check: a stream's length is not known before it has been read."""

    def load_state_dict(self, state: dict[str, int], needed: Iterable[Key] = ()) -> dict[Key, Ref]:
        """Skip to the stored position and return the references of ``needed``, read on the way.

        Raises DataError: one of them no longer exists.
        """
        here, expected, result = (state["epoch"], state["offset"]), set(needed), dict[Key, Ref]()
        places = [here, *((epoch, index) for _, epoch, index in expected)]
        self._epoch, self._offset = here
        self._ahead.clear()
        self._reader = self._read(*min(places))
        while expected and (len(result) < len(expected) or not self._ahead):
            ref = next(self._reader)
            if ref.key in expected:
                result[ref.key] = ref
            if (ref.epoch, ref.index) >= here:
                self._ahead.append(ref)
            if (ref.epoch, ref.index) > max(places) and len(result) < len(expected):
                _, epoch, index = min(expected - result.keys())
                raise DataError(
                    f"dataset {self.name}: record {index} of pass {epoch}, read by the saved run, no longer exists",
                    fix=SAME_DATA,
                )
        return result


def cursor(name: str, dataset: Any, seed: int, number: int = 0) -> MapCursor | StreamCursor:
    """The cursor for a dataset of either kind; ``number`` is the source's.

    Raises DataError: the dataset is empty, or of neither kind.
    """
    if isinstance(dataset, StreamDataset):
        return StreamCursor(name, dataset, seed, number)
    if isinstance(dataset, MapDataset):
        return MapCursor(name, dataset, seed, number)
    raise not_a_dataset(dataset, name)


@dataclass
class JobSampler:
    """Endless jobs of one rank; ``states`` holds the sampler's state after each job handed out.

    ``policy`` chooses the dataset of each sample. Its sizes are per rank: a global job has ``world_size`` times as many
    samples and is cut ``r::world_size``.

    Order of jobs: samples to ``restore`` (read before, not yet in a batch), then the ``backlog`` (left over when the
    number of processes changed), then global jobs for ever.
    """

    cursors: Sequence[MapCursor | StreamCursor]
    policy: MixingPolicy
    rank: int = 0
    world_size: int = 1
    step: int = 0
    position: int = 0
    backlog: list[Ref] = field(default_factory=list)
    restore: list[Ref] = field(default_factory=list)
    states: deque[dict[str, Any]] = field(default_factory=deque)

    def __iter__(self) -> Iterator[Job]:
        """Continues from the current state; the state after each job is appended to ``states``."""
        for start in range(0, len(self.restore), CHUNK):
            yield self._job(self.restore[start : start + CHUNK], restore=True)
        self.restore = []
        while self.backlog:
            count = self.policy.backlog_size([r.source for r in self.backlog])
            refs, self.backlog = self.backlog[:count], self.backlog[count:]
            yield self._job(refs)
        while True:
            yield self._job(self.take(), slice(self.rank, None, self.world_size))

    def take(self) -> list[Ref]:
        """The references of the next global job."""
        drawn = self.policy.draw(self.step, self.position, self.shares, lambda s: self.cursors[s].position)
        self.step, self.position = self.step + 1, self.position + len(drawn)
        taken = {s: iter(self.cursors[s].take(n)) for s, n in Counter(drawn).items()}
        return [next(taken[s]) for s in drawn]

    @property
    def shares(self) -> int:
        """How many times the policy's sizes make a global job."""
        return self.world_size

    @property
    def global_batch(self) -> int | None:
        """``run.global_batch``; None: the size of a step depends on the number of ranks."""
        return None

    def _job(self, refs: list[Ref], part: slice = slice(None), restore: bool = False) -> Job:
        self.states.append(self.state_dict())
        lookahead = {} if restore else {s: self.cursors[s].lookahead() for s in {r.source for r in refs}}
        return Job(tuple(enumerate(refs))[part], lookahead, restore)

    def state_dict(self) -> dict[str, Any]:
        """Job number, samples drawn, cursors, sizes and the remaining backlog; plain integers."""
        return {
            "step": self.step,
            "position": self.position,
            "mixing": self.policy.name,
            "sizes": list(self.policy.sizes),
            "global_batch": self.global_batch,
            "groups": [list(g) for g in self.policy.groups],
            "sources": {c.name: c.state_dict() for c in self.cursors},
            "backlog": [list(r.key) for r in self.backlog],
        }

    def check(self, state: dict[str, Any]) -> None:
        """Raises DataError when the saved run had other datasets or another mixing, or its state is too old."""
        if "backlog" not in state:
            raise DataError(
                "the data position was saved by an earlier version and cannot be resumed",
                fix="name the checkpoint under model.ckpt and start a new run",
            )
        ours = [c.name for c in self.cursors]
        if list(state["sources"]) != ours:
            raise DataError(
                f"the saved run had the datasets {list(state['sources'])}, this one has {ours}", fix=SAME_DATA
            )
        if state["mixing"] != self.policy.name:
            raise DataError(
                f"the saved run mixed its data by {state['mixing']}, this one by {self.policy.name}",
                fix="resume with the same run.mixing and run.packing, or start a new run from the checkpoint's weights",
            )
        if state.get("groups", []) != [list(g) for g in self.policy.groups]:
            raise DataError(
                "the saved run had its datasets in other groups",
                fix="resume with the same datasets.NAME.group, or start a new run from the checkpoint's weights",
            )
        for c in self.cursors:
            c.check(state["sources"][c.name])

    def load_state_dict(self, state: dict[str, Any], pending: Sequence[Key] = ()) -> None:
        """Move to a stored position; the samples of ``pending`` are handed out before anything else.

        Raises DataError: the saved run had other datasets, or other records in them.
        """
        self.check(state)
        self.step, self.position = state["step"], state["position"]
        self.states.clear()
        backlog = [(s, e, i) for s, e, i in state["backlog"]]
        result: dict[Key, Ref] = {}
        for number, c in enumerate(self.cursors):
            needed = {key for key in (*backlog, *pending) if key[0] == number}
            result.update(c.load_state_dict(state["sources"][c.name], needed))
        self.backlog, self.restore = [result[k] for k in backlog], [result[k] for k in pending]
