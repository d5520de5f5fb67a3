"""``run.global_batch``: steps of a fixed number of samples, the same ones at any number of processes.

The samples of a step follow from its number, the seed and the data alone. Each rank takes a run of neighbours of them
and cuts it into micro-batches as equal as possible. No sample waits for a later step, so that the position between two
steps is the same on all ranks, and any other number of them can go on from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

from vlm.common.errors import ConfigError, DataError
from vlm.config.run import Packing
from vlm.datasets.loading.batching import Assembler, BatchRows, OpenRow, pending
from vlm.datasets.loading.mixing import MixingPolicy
from vlm.datasets.loading.sampler import CHUNK, LOOKAHEAD, Job, JobSampler, Ref
from vlm.datasets.loading.worker import EncodedSample, WorkerResult


def whole_steps(policy: MixingPolicy, global_batch: int, groups: Sequence[str], world_size: int) -> MixingPolicy:
    """``policy`` with jobs of a whole step, or of a group's part of it: the groups have equal parts.

    Raises ConfigError: there are fewer samples than processes, or the groups cannot have equal parts.
    """
    turns = max(1, len(groups))
    if global_batch % turns:
        raise ConfigError(
            f"run.global_batch={global_batch} cannot be divided equally among the {turns} groups {', '.join(groups)}",
            fix=f"set it to a multiple of {turns}",
        )
    size = global_batch // turns
    if size < world_size:
        each = " of each group" if groups else ""
        raise ConfigError(
            f"run.global_batch={global_batch}: a step has {size} sample{'s' * (size != 1)}{each} "
            f"for {world_size} processes",
            fix=f"set it to at least {world_size * turns}, or start fewer processes",
        )
    return replace(policy, sizes=[size] * len(policy.sizes))


def evenly(count: int, parts: int) -> list[slice]:
    """``count`` things cut into ``parts`` runs whose lengths differ by at most 1; empty runs are left out."""
    bounds = [count * k // parts for k in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(bounds) if a < b]


def micro_batches(count: int, most: int, rank: int, world_size: int) -> list[slice]:
    """Which of ``count`` samples are in each micro-batch of a rank; at most ``most`` in one.

    All ranks have the same number of micro-batches, except that some lack the last one where there are more
    micro-batches than samples.

    Example: ``micro_batches(8, 2, 1, 2) == [slice(4, 6), slice(6, 8)]``
    """
    each = -(-count // (most * world_size))
    bounds = [count * k // (each * world_size) for k in range(rank * each, (rank + 1) * each + 1)]
    return [slice(a, b) for a, b in pairwise(bounds) if a < b]


@dataclass
class StepSampler(JobSampler):
    """Endless jobs of one rank, the last of each step with ``last``; every global job is a step or a group's part.

    ``policy`` is one of :func:`whole_steps`. The state changes with the last job of a step only.
    """

    sizes: Sequence[int] = ()  # samples of a micro-batch at most: of each source (batch), of each group (joint), or one
    chunked: bool = False  # jobs do not make a batch by themselves

    def __iter__(self) -> Iterator[Job]:
        """Continues from the current state; the state after each job is appended to ``states``."""
        while True:
            before = self.state_dict()
            jobs = [job for _ in range(max(1, len(self.policy.groups))) for job in self._jobs()]
            self.states.extend([before] * (len(jobs) - 1) + [self.state_dict()])
            yield from jobs[:-1]
            yield replace(jobs[-1], last=True)

    def _jobs(self) -> list[Job]:
        """This rank's jobs of the next global job."""
        turn = self.step % max(1, len(self.policy.groups))
        refs = self.take()
        size = self.sizes[refs[0].source if self.policy.name == "batch" else turn]
        parts = micro_batches(len(refs), size, self.rank, self.world_size)
        if self.chunked:
            first, end = parts[0].start, parts[-1].stop
            parts = [slice(k, min(k + CHUNK, end)) for k in range(first, end, CHUNK)]
        places = tuple(enumerate(refs))
        lookahead = {s: self.cursors[s].lookahead() for s in {r.source for r in refs}}
        spare = {s: tuple(islice((r for r in refs if r.source == s), LOOKAHEAD)) for s, a in lookahead.items() if a}
        return [_part(places[part], lookahead, spare) for part in parts]

    def jobs_per_step(self) -> int:
        """This rank's jobs of a step, at most."""
        sizes = [CHUNK] if self.chunked else self.sizes if self.policy.groups else [min(self.sizes)]
        return sum(-(-self.policy.sizes[0] // (size * self.world_size)) for size in sizes)

    @property
    def shares(self) -> int:
        """1: the policy's sizes are those of all ranks together."""
        return 1

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return self.policy.sizes[0] * max(1, len(self.policy.groups))

    def check(self, state: dict[str, Any]) -> None:
        """Raises DataError as the base class does, and when samples wait that had been read for later batches."""
        super().check(state)
        if waiting := len(state["backlog"]) + len(pending(state.get("pending", {}))):
            raise DataError(
                f"{waiting} samples of the saved run wait for a batch, but run.global_batch lets none wait",
                fix="resume without run.global_batch, or start a new run from the checkpoint's weights",
            )


def _part(
    places: tuple[tuple[int, Ref], ...], lookahead: dict[int, tuple[Ref, ...]], spare: dict[int, tuple[Ref, ...]]
) -> Job:
    """A job of these places, with what may replace their records: the same whoever reads them."""
    found = {ref.source for _, ref in places}
    kept = tuple(ref for source in sorted(found & spare.keys()) for ref in spare[source])
    return Job(places, {source: lookahead[source] for source in found}, spare=kept)


class StepAssembler(Assembler):
    """Makes the micro-batches of a step from all its samples; between steps nothing is pending."""

    def __init__(self, make: Callable[[list[EncodedSample]], list[BatchRows]]) -> None:
        """``make``: samples of a rank's part of a step -> its micro-batches."""
        super().__init__()
        self._make = make
        self._samples: list[EncodedSample] = []
        self._ready: deque[BatchRows] = deque()

    def add(self, result: WorkerResult) -> None:
        """Take the samples of a job; the last one of a step makes its micro-batches."""
        self._samples += result.owned()
        if result.last:
            self._ready.extend(self._make(self._samples))
            self._samples = []

    def pop(self) -> BatchRows | None:
        """The next micro-batch."""
        return self._ready.popleft() if self._ready else None

    @property
    def step_done(self) -> bool:
        """Whether all micro-batches of the step have been given."""
        return not self._ready


def by_length(samples: Sequence[EncodedSample], sizes: Sequence[int], by_source: bool) -> list[BatchRows]:
    """Micro-batches of neighbours by length, one sample per row, longest first.

    Args:
        samples: of one step.
        sizes: samples of a micro-batch at most: by source number with ``by_source``, else one number.
        by_source: all samples are of one source.
    """
    ordered = sorted(samples, key=lambda sample: -sample.tokens)
    size = sizes[samples[0].key[0] if by_source else 0]
    return [[[sample] for sample in ordered[part]] for part in evenly(len(ordered), -(-len(ordered) // size))]


def packed(samples: Sequence[EncodedSample], limits: Packing, size: int) -> list[BatchRows]:
    """Micro-batches of at most ``size`` rows, as few rows as first fit needs, and these about equally long.

    A batch is padded to its longest row, so that three rows of 1,800 positions take less than two of 2,048 and a rest.
    """
    ordered = sorted(samples, key=lambda sample: -sample.tokens)
    rows = _first_fit(ordered, limits)
    rows = _balanced(ordered, limits, len(rows)) or rows
    rows.sort(key=lambda row: -row.tokens)
    return [[row.samples for row in rows[part]] for part in evenly(len(rows), -(-len(rows) // size))]


def _first_fit(ordered: Sequence[EncodedSample], limits: Packing) -> list[OpenRow]:
    """Each sample in the first row with room for it."""
    rows: list[OpenRow] = []
    for sample in ordered:
        row = next((row for row in rows if row.has_room(sample, limits.max_tokens, limits.max_media)), None)
        if row is None:
            rows.append(row := OpenRow())
        row.add(sample)
    return rows


def _balanced(ordered: Sequence[EncodedSample], limits: Packing, count: int) -> list[OpenRow] | None:
    """Each sample in the shortest of ``count`` rows with room for it; None if there is no room for one."""
    rows = [OpenRow() for _ in range(count)]
    for sample in ordered:
        free = [row for row in rows if row.has_room(sample, limits.max_tokens, limits.max_media)]
        if not free:
            return None
        min(free, key=lambda row: row.tokens).add(sample)
    return rows
