"""Which records make which batch. Lives in the main process; workers only get its jobs.

All decisions follow from (seed, position) and a few counters, so that state is small and a run resumed at
any batch goes on exactly, whatever the number of workers or processes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vlm.common.errors import DataError
from vlm.datasets.base import MapDataset, StreamDataset, not_a_dataset
from vlm.datasets.loading.mixing import derive_seed, draw_source

SPARES = 3
"""Stream records sent along with a batch in case one of its own cannot be used."""

CHUNK = 8
"""Samples of a job that is no finished batch."""

Key = tuple[int, int, int]
"""A sample without its data: source number, pass, index."""


@dataclass(frozen=True)
class Ref:
    """One sample: its pass over the dataset, its index (place in the pass for a stream), its raw record, its source."""

    epoch: int
    index: int
    raw: Any = None
    source: int = 0

    @property
    def key(self) -> Key:
        """The reference without its record."""
        return (self.source, self.epoch, self.index)


@dataclass(frozen=True)
class Job:
    """Samples to read: this rank's references with their places in the global job, lookahead of each stream.

    ``restore``: they were read before the run was interrupted; none of them may be replaced now.
    """

    step: int
    refs: tuple[tuple[int, Ref], ...]
    lookahead: dict[int, tuple[Ref, ...]] = field(default_factory=dict)
    restore: bool = False


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
        self._position = 0
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def position(self) -> int:
        """Samples taken so far."""
        return self._position

    def take(self, count: int) -> tuple[list[Ref], list[Ref]]:
        """The next ``count`` references; no lookahead (a worker can read any index)."""
        refs = [self._ref(p) for p in range(self._position, self._position + count)]
        self._position += count
        return refs, []

    def _ref(self, position: int) -> Ref:
        epoch, place = divmod(position, self.length)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "order", self.name, epoch)))
            self._order = (epoch, rng.permutation(self.length))
        return Ref(epoch, int(self._order[1][place]), None, self._number)

    def lookahead(self) -> tuple[Ref, ...]:
        """None: a worker can read any index."""
        return ()

    def state_dict(self) -> dict[str, int]:
        """Samples taken so far, and the length they refer to."""
        return {"position": self._position, "length": self.length}

    def check(self, state: dict[str, int]) -> None:
        """Raises DataError when the dataset has another length than it had."""
        if state.get("length") != self.length:
            raise DataError(
                f"dataset {self.name} has {self.length} records but the saved run had {state.get('length')}",
                fix="resume with the same data, or start a new run from the checkpoint's weights",
            )

    def load_state_dict(self, state: dict[str, int], needed: Iterable[Key] = ()) -> dict[Key, Ref]:
        """Go to the stored place.

        Returns:
            the references of ``needed``.

        Raises:
            DataError: the dataset has another length than it had.
        """
        self.check(state)
        self._position = state["position"]
        return {(s, e, i): Ref(e, i, None, s) for s, e, i in needed}


class StreamCursor:
    """Endless seeded passes over a stream; resumes by skipping undecoded records of the current pass."""

    def __init__(self, name: str, dataset: StreamDataset, seed: int, number: int = 0) -> None:
        """``number`` of the source. Raises DataError when the first pass has no record."""
        self.name, self._dataset, self._seed, self._number = name, dataset, seed, number
        self._epoch, self._offset = 0, 0
        self._ahead: deque[Ref] = deque()
        self._reader = self._read(0, 0)
        self._fill(1)

    def take(self, count: int) -> tuple[list[Ref], list[Ref]]:
        """The next ``count`` references, and the few that come after them as lookahead."""
        self._fill(count)
        refs = [self._ahead.popleft() for _ in range(count)]
        self._epoch, self._offset = refs[-1].epoch, refs[-1].index + 1
        return refs, list(self.lookahead())

    def lookahead(self) -> tuple[Ref, ...]:
        """The few records that come next."""
        self._fill(SPARES)
        return tuple(self._ahead[i] for i in range(SPARES))

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
        """The pass, and the records of it that were taken."""
        return {"epoch": self._epoch, "offset": self._offset}

    def check(self, state: dict[str, int]) -> None:
        """Nothing can be said about a stream without reading it."""

    def load_state_dict(self, state: dict[str, int], needed: Iterable[Key] = ()) -> dict[Key, Ref]:
        """Skip to the stored place, reading the records of ``needed`` on the way.

        Returns:
            the references of ``needed`` with their records.

        Raises:
            DataError: one of them is not there any more.
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
                    f"dataset {self.name}: the saved run holds record {index} of pass {epoch}, which is not there now",
                    fix="resume with the same data, or start a new run from the checkpoint's weights",
                )
        return result


def cursor(name: str, dataset: Any, seed: int, number: int = 0) -> MapCursor | StreamCursor:
    """The cursor for a dataset of either kind; ``number`` is the source's.

    Raises:
        DataError: the dataset is empty, or of neither kind.
    """
    if isinstance(dataset, StreamDataset):
        return StreamCursor(name, dataset, seed, number)
    if isinstance(dataset, MapDataset):
        return MapCursor(name, dataset, seed, number)
    raise not_a_dataset(dataset, name)


@dataclass
class JobSampler:
    """Endless jobs of one rank, each followed by the sampler's state after it.

    With ``mixing="batch"`` a job is a batch of one dataset and ``sizes`` are the datasets' batch sizes; with
    ``"sample"`` every sample draws its dataset and ``sizes`` has one number. With ``"joint"`` the jobs take turns
    between ``groups`` of datasets, each sample draws its dataset within the group, and ``sizes`` are the groups'; a
    group with ``lengths`` (numbers of records) is one shuffled list of all its datasets instead.
    Sizes are per rank: a global job has ``world_size`` times as many samples and is cut ``r::world_size``. Which
    samples follow one another with ``"sample"`` depends on neither.

    First come samples to ``restore`` (read before, not yet in a batch), then the ``backlog`` (left over when
    the number of processes changed), then the global jobs.
    """

    cursors: Sequence[MapCursor | StreamCursor]
    sizes: Sequence[int]
    weights: Sequence[float]
    seed: int
    rank: int = 0
    world_size: int = 1
    mixing: Literal["batch", "sample", "joint"] = "batch"
    groups: Sequence[Sequence[int]] = ()
    lengths: Sequence[Sequence[int] | None] = ()
    step: int = 0
    position: int = 0
    backlog: list[Ref] = field(default_factory=list)
    restore: list[Ref] = field(default_factory=list)
    states: deque[dict[str, Any]] = field(default_factory=deque)
    orders: dict[int, tuple[int, list[int]]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Job]:
        """Goes on from the current state; the state after each job is appended to ``states``."""
        for start in range(0, len(self.restore), CHUNK):
            yield self._listed(self.restore[start : start + CHUNK], restore=True)
        self.restore = []
        while self.backlog:
            count = self._run_length()
            refs, self.backlog = self.backlog[:count], self.backlog[count:]
            yield self._listed(refs)
        while True:
            refs, lookahead = self.take()
            job = Job(self.step, tuple(enumerate(refs))[self.rank :: self.world_size], lookahead)
            self.step += 1
            self.states.append(self.state_dict())
            yield job

    def take(self) -> tuple[list[Ref], dict[int, tuple[Ref, ...]]]:
        """The references of the next global job, and lookahead by source; the caller counts ``step``."""
        if self.mixing == "batch":
            source = draw_source(self.seed, self.step, self.weights)
            drawn = [source] * (self.sizes[source] * self.world_size)
        else:
            drawn = self._drawn(self.step % len(self.sizes))
        self.position += len(drawn)
        taken = {s: self.cursors[s].take(n) for s, n in Counter(drawn).items()}
        following = {s: iter(refs) for s, (refs, _) in taken.items()}
        return [next(following[s]) for s in drawn], {
            s: tuple(lookahead) for s, (_, lookahead) in taken.items() if lookahead
        }

    def _drawn(self, turn: int) -> list[int]:
        """The source of each sample of a global job of the group whose turn it is."""
        count = self.sizes[turn] * self.world_size
        members = self.groups[turn] if self.groups else range(len(self.cursors))
        if self.lengths and (lengths := self.lengths[turn]):
            start = sum(c.position for c in (self.cursors[m] for m in members) if isinstance(c, MapCursor))
            places = (divmod(p, sum(lengths)) for p in range(start, start + count))
            return [members[self._order(turn, lengths, n)[place]] for n, place in places]
        weights = [self.weights[m] for m in members]
        places_ = range(self.position, self.position + count)
        return [members[draw_source(self.seed, p, weights, "mix sample")] for p in places_]

    def _order(self, turn: int, lengths: Sequence[int], number: int) -> list[int]:
        """Members of a group in the order of a pass over it, each as often as it has records."""
        if self.orders.get(turn, (-1, []))[0] != number:
            rng = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "group order", turn, number)))
            self.orders[turn] = (number, rng.permutation(np.repeat(np.arange(len(lengths)), lengths)).tolist())
        return self.orders[turn][1]

    def _listed(self, refs: list[Ref], restore: bool = False) -> Job:
        sources = {r.source for r in refs}
        lookahead = {s: self.cursors[s].lookahead() for s in sources} if not restore else {}
        self.states.append(self.state_dict())
        return Job(self.step, tuple(enumerate(refs)), lookahead, restore)

    def _run_length(self) -> int:
        """How much of the backlog makes the next job: with ``"batch"`` one dataset's batch, if there is as much."""
        if self.mixing != "batch":
            return self.sizes[0]
        source = self.backlog[0].source
        other = next((k for k, r in enumerate(self.backlog) if r.source != source), len(self.backlog))
        return min(other, self.sizes[source])

    def replica(self, sizes: Sequence[int], world_size: int) -> JobSampler:
        """Another sampler over the same cursors, as a run of other sizes has it."""
        return dataclasses.replace(
            self, sizes=sizes, rank=0, world_size=world_size, backlog=[], restore=[], states=deque()
        )

    def state_dict(self) -> dict[str, Any]:
        """Job number, samples drawn, cursors, sizes and the rest of the backlog; plain integers."""
        return {
            "step": self.step,
            "position": self.position,
            "mixing": self.mixing,
            "sizes": list(self.sizes),
            "groups": [list(g) for g in self.groups],
            "sources": {c.name: c.state_dict() for c in self.cursors},
            "backlog": [list(r.key) for r in self.backlog],
        }

    def check(self, state: dict[str, Any]) -> None:
        """Raises DataError when the saved run had other datasets, another mixing or another kind of state."""
        if "backlog" not in state:
            raise DataError(
                "the data position was saved by an earlier version, which cannot be continued",
                fix="name the checkpoint under model.ckpt and start a new run",
            )
        ours = [c.name for c in self.cursors]
        if list(state["sources"]) != ours:
            raise DataError(
                f"the saved run had the datasets {list(state['sources'])}, this one has {ours}",
                fix="resume with the same data, or start a new run from the checkpoint's weights",
            )
        if state["mixing"] != self.mixing:
            raise DataError(
                f"the saved run mixed its data by {state['mixing']}, this one by {self.mixing}",
                fix="resume with the same run.mixing and run.packing, or start a new run from the checkpoint's weights",
            )
        if state.get("groups", []) != [list(g) for g in self.groups]:
            raise DataError(
                "the saved run had its datasets in other groups",
                fix="resume with the same datasets.NAME.group, or start a new run from the checkpoint's weights",
            )
        for c in self.cursors:
            c.check(state["sources"][c.name])

    def load_state_dict(self, state: dict[str, Any], pending: Sequence[Key] = ()) -> None:
        """Go to a stored place; the samples of ``pending`` are handed out before anything else.

        Raises:
            DataError: the saved run had other datasets, or other records in them.
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
