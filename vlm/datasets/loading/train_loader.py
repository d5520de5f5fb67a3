"""Batches for training: endless, resumable."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import ConfigError, DataError, UserError
from vlm.common.types import Batch
from vlm.config.run import Packing
from vlm.datasets.loading.batching import Assembler, BatchRows, FirstFitPacker, LengthGrouped, make_batch, pending
from vlm.datasets.loading.cuts import cut_bound, report_cuts
from vlm.datasets.loading.data_stats import DataReport, DataStats
from vlm.datasets.loading.elastic_resume import merge
from vlm.datasets.loading.global_batch import StepAssembler, StepSampler, by_length, packed, whole_steps
from vlm.datasets.loading.groups import groups_of, mixing_policy, ratios_from_sizes, record_counts
from vlm.datasets.loading.mixing import MixingName, derive_seed
from vlm.datasets.loading.quarantine import Quarantine
from vlm.datasets.loading.sampler import CHUNK, JobSampler, cursor
from vlm.datasets.loading.sources import Source, build_sources
from vlm.datasets.loading.worker import SampleReader, WorkerResult, data_loader
from vlm.processors.collate import VisualTokens
from vlm.processors.processor import Processor

if TYPE_CHECKING:
    from vlm.config.api import DatasetEntry

log = logging.getLogger(__name__)


class TrainLoader:
    """Endless batches of one rank.

    A sampler makes jobs, workers read and encode their samples, an assembler puts the samples into the rows of batches,
    and this process collates them. :mod:`vlm.datasets.loading.mixing` describes ``mixing``;
    :mod:`vlm.datasets.loading.batching` describes ``group_by_length`` and ``packing``.

    The batches follow from (seed, position) alone, whatever the number of workers. Which samples are read does not
    depend on the number of processes either. ``state_dict()`` belongs to the batch handed out last, however far the
    workers have read ahead, and holds numbers only.

    With ``global_batch`` a step has the same samples at any ``world_size`` and any ``batch_size``
    (:mod:`vlm.datasets.loading.global_batch`); :meth:`step` gives its micro-batches of this rank, and the state is
    that of the last whole step.

    Args:
        sources: the datasets, with their batch sizes, ratios and groups.
        processor: encodes samples.
        seed: of all random choices.
        rank, world_size: which part of every global job this process takes.
        num_workers: processes that read and encode; 0: this one does.
        output_dir: folder of ``quarantine.jsonl``, which lists bad records.
        max_bad_share: share of bad records of a dataset that ends the run.
        max_cut_share: share of cut samples of a dataset that ends the run; None: see
            :func:`vlm.datasets.loading.cuts.cut_bound`.
        mixing: how datasets share the batches.
        batch_size: samples (packing: rows) of a batch where it does not follow from the dataset.
        group_by_length: batches whose samples are sorted by length together; 0: off.
        packing: several samples in a row; implies ``mixing="sample"``.
        visual_tokens: positions that media take in the LLM.
        pin_memory: put batches into pinned host memory.
        global_batch: samples of a step of all ranks together; None: as many as the batches of the step have.

    Raises:
        DataError: no dataset, or an empty one.
        ConfigError: no ratio is positive, or groups are wrong, or ``global_batch`` cannot be divided.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        processor: Processor,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        output_dir: str | Path | None = None,
        max_bad_share: float = 0.01,
        max_cut_share: float | None = None,
        mixing: MixingName = "batch",
        batch_size: int | None = None,
        group_by_length: int = 0,
        packing: Packing | None = None,
        visual_tokens: VisualTokens | None = None,
        pin_memory: bool = False,
        global_batch: int | None = None,
    ) -> None:
        """Check the datasets; nothing is read before the first batch."""
        if not sources:
            raise DataError("no dataset to train on", fix="name at least one under datasets:")
        if sum(s.ratio for s in sources) <= 0:
            raise ConfigError(
                f"sample_ratio of {', '.join(s.name for s in sources)}: none is above 0",
                fix="set the sample_ratio of at least one dataset to a positive number",
            )
        mixing = "sample" if packing else mixing
        policy = mixing_policy(mixing, sources, seed, batch_size)
        self.sources, self.groups = list(sources), tuple(groups_of(sources)) if mixing == "joint" else ()
        self._sizes = list(policy.sizes)
        self._packing, self._group_by_length, self._seed = packing, group_by_length, seed
        self._rank, self._world_size, self._pin = rank, world_size, pin_memory
        cursors = [cursor(s.name, s.dataset, seed, number) for number, s in enumerate(sources)]
        self._sampler: JobSampler
        if global_batch:
            policy = whole_steps(policy, global_batch, self.groups, world_size)
            chunked = packing is not None or group_by_length > 0
            self._sampler = StepSampler(cursors, policy, rank, world_size, sizes=self._sizes, chunked=chunked)
        else:
            own = replace(policy, sizes=[CHUNK]) if packing else policy
            self._sampler = JobSampler(cursors, own, rank, world_size)
        self._shares = policy.expected_shares()
        self._processor, self._num_workers = processor, num_workers
        self._reader = SampleReader(
            sources,
            processor.as_uint8() if num_workers else processor,
            seed=seed,
            visual_tokens=visual_tokens or VisualTokens(),
            packing=packing,
        )
        self._max_cut = cut_bound(max_cut_share, processor)
        self._quarantine, self._stats = Quarantine(output_dir, max_bad_share), DataStats()
        self._state: dict[str, Any] = {**self._sampler.state_dict(), "pending": {}}
        self._iterator: Iterator[WorkerResult] | None = None
        self._assembler = self._new_assembler()

    @classmethod
    def from_config(cls, entries: Mapping[str, DatasetEntry], processor: Processor, **options: Any) -> TrainLoader:
        """The loader of a ``datasets:`` section. Raises as :func:`build_sources` and the constructor do."""
        sources = build_sources(entries, processor)
        if options.get("mixing") == "joint":
            ratios_from_sizes(entries, sources)
        return cls(sources, processor, **options)

    def _new_assembler(self) -> Assembler:
        by_source = self._sampler.policy.name == "batch"
        if p := self._packing:
            if self._sampler.global_batch:
                return StepAssembler(lambda samples: packed(samples, p, self._sizes[0]))
            return FirstFitPacker(p.max_tokens, p.max_media, p.open_rows, self._sizes[0])
        if self._group_by_length:
            if self._sampler.global_batch:
                return StepAssembler(lambda samples: by_length(samples, self._sizes, by_source))
            return LengthGrouped(self._group_by_length, self._sizes, by_source, self._seed)
        return Assembler()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: too many bad records or cut samples, or only bad ones in a row.
            PromptError: placeholders and media of a sample differ.
        """
        try:
            rows = self._rows()
            batch = make_batch(rows, self._processor, self._pin)
        except UserError:
            self.close()
            raise
        self._stats.add(rows, [s.name for s in self.sources])
        if batch.stored is not None:
            self._stats.add_cached(batch.stored)
        report_cuts(rows, self._stats.cuts, [s.name for s in self.sources], self._max_cut)
        if self._sampler.global_batch:  # of the first sample, so that a batch has its seed on whichever rank it is
            batch = replace(batch, seed=derive_seed(self._seed, "dropout", *rows[0][0].key))
        first = min(sample.key[0] for row in rows for sample in row)
        return replace(batch, group=self.sources[first].group) if self.groups else batch

    def _rows(self) -> BatchRows:
        """The samples of the next batch, read and encoded."""
        if self._iterator is None:
            self._iterator = self._start()
        while (rows := self._assembler.pop()) is None:
            result = next(self._iterator)
            self._quarantine.count(result.good, result.bad)
            if result.error is not None:
                raise result.error
            self._state = self._sampler.states.popleft()
            self._assembler.add(result)
        return rows

    def step(self, count: int) -> list[Batch]:
        """The micro-batches of the next step: ``count`` of them, with ``global_batch`` as many as it takes.

        Raises as :meth:`__next__`.
        """
        if not self._sampler.global_batch:
            return [next(self) for _ in range(count)]
        batches = [next(self)]
        while not self._assembler.step_done:
            batches.append(next(self))
        return batches

    def skip(self, steps: int, count: int) -> None:
        """Move on as if :meth:`step` had been called ``steps`` times with ``count``; ``replay`` starts so.

        Where no sample waits for a later batch, no record is decoded: a map-style dataset is not read at all, a stream
        is read without decoding. Packed rows and length groups (without ``global_batch``) depend on the samples'
        lengths, so there all samples are read and encoded, but no batch is made of them. The statistics do not count
        what is skipped.

        Raises as :meth:`__next__`.
        """
        whole = self._sampler.global_batch is not None
        if (self._packing or self._group_by_length) and not whole:
            for _ in range(steps * count):
                self._rows()
            return
        self.close()
        self._sampler.load_state_dict(self._state)
        jobs = iter(self._sampler)
        done, wanted = 0, steps if whole else steps * count
        while done < wanted:
            done += next(jobs).last or not whole
            self._state = {**self._sampler.states.popleft(), "pending": {}}

    def _start(self) -> Iterator[WorkerResult]:
        """Start reading at the current state; pending samples are read again first."""
        keys = pending(self._state["pending"])
        self._sampler.load_state_dict(self._state, keys)
        options: dict[str, Any] = {}
        if self._num_workers:
            options["prefetch_factor"] = max(2, self._read_ahead())
        iterator: Iterator[WorkerResult] = iter(data_loader(self._reader, self._sampler, self._num_workers, **options))
        samples = {}
        for _ in range(0, len(keys), CHUNK):
            result = next(iterator)
            if result.error is not None:
                raise result.error
            self._sampler.states.popleft()
            samples.update({sample.key: sample for sample in result.owned()})
        self._assembler = self._new_assembler()
        if self._state["pending"]:
            self._assembler.load_state_dict(self._state["pending"], samples)
        return iterator

    def _read_ahead(self) -> int:
        """Jobs that a worker prepares in advance, where torch's 2 are not enough."""
        if isinstance(self._sampler, StepSampler):  # a step, which is trained on only when it is complete
            return math.ceil(self._sampler.jobs_per_step() / self._num_workers)
        # packed rows: as many samples as with jobs of whole batches
        return 4 * self._sizes[0] // CHUNK if self._packing else 2

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Of this rank, by source: samples and tokens of the batches so far, bad records, expected share of samples."""
        return {
            s.name: {
                "samples": self._stats.samples[s.name],
                "bad": self._quarantine.bad[s.name],
                "tokens": self._stats.tokens[s.name],
                "wanted": share / sum(self._shares),
                **(self._stats.cuts[s.name].as_report() if self._stats.cuts[s.name].cut else {}),
            }
            for s, share in zip(self.sources, self._shares, strict=True)
        }

    def report(self) -> DataReport:
        """:attr:`counts` and the positions they took, for :mod:`vlm.datasets.loading.data_stats`."""
        cache = self._stats.cache_report()
        return {"sources": self.counts, "positions": self._stats.positions, **({"cache": cache} if cache else {})}

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches (with ``global_batch``: steps) in one pass, where that is known.

        It is for a single map-style dataset, and for a first joint group whose ratios are proportional to its datasets'
        sizes; for packed rows with ``global_batch`` only.
        """
        members = next(iter(self._sampler.policy.groups), range(len(self.sources)))
        counts = record_counts(self.sources, members) if self.groups or len(members) == 1 else None
        if counts is None or (self._packing and not self._sampler.global_batch):
            return None
        return max(sum(counts) // (self._sampler.policy.sizes[0] * self._sampler.shares), 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from: a few integers per dataset, and three for every pending sample."""
        held = self._state["pending"] if self._iterator is None else self._assembler.state_dict()
        counts = {"tally": self._stats.state_dict(), "records": self._quarantine.state_dict()}
        return {**self._state, "pending": held, **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which ``state`` was taken.

        Raises DataError: the saved run had other datasets, one of another length, or batches of another kind.
        """
        self.close()
        self._sampler.check(state)
        before, now = state.get("global_batch"), self._sampler.global_batch
        if before != now:
            log.warning("run.global_batch changed from %s to %s: steps have other samples from here on", before, now)
        if state["pending"] and not (self._packing or self._group_by_length):
            raise DataError(
                f"the saved run holds {len(pending(state['pending']))} samples for packed rows or length groups",
                fix="resume with the same run.packing and run.group_by_length",
            )
        self._stats.load_state_dict(state["tally"])
        self._quarantine.load_state_dict(state["records"])
        kept = {key: value for key, value in state.items() if key not in ("tally", "records")}
        self._state = {**kept, "global_batch": now}

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue after the batches at which all processes of a run took ``states`` (in order of rank).

        With another number of processes the remaining samples are divided again:
        :mod:`vlm.datasets.loading.elastic_resume`.

        Raises:
            DataError: as :meth:`load_state_dict`.
        """
        same = len(states) == self._world_size
        self.load_state_dict(states[self._rank] if same else merge(states, self._sampler))

    def close(self) -> None:
        """End the workers; the next batch starts them again at the current state."""
        if self._iterator is not None:
            self._state = {**self._state, "pending": self._assembler.state_dict()}
            self._iterator = None
