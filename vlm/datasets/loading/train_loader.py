"""Batches for training: endless, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from vlm.common.errors import ConfigError, DataError, UserError
from vlm.common.registry import resolve
from vlm.common.types import Batch
from vlm.config.run import Packing
from vlm.datasets.loading.batching import Assembler, FirstFitPacker, LengthGrouped, Passthrough, Rows, pending
from vlm.datasets.loading.data_stats import DataStats, Report
from vlm.datasets.loading.elastic_resume import merge
from vlm.datasets.loading.groups import batch_sizes, groups_of, lengths, ratios_from_sizes, wanted
from vlm.datasets.loading.quarantine import Quarantine
from vlm.datasets.loading.sampler import CHUNK, JobSampler, cursor
from vlm.datasets.loading.worker import BatchMaker, Limits, Source, WorkerResult, as_is, measure, start_worker
from vlm.processors.collate import VisualTokens, collate_rows, finalize_pixels, unify_dtypes
from vlm.processors.processor import Processor

if TYPE_CHECKING:
    from vlm.config.api import DatasetEntry


def build_sources(entries: Mapping[str, DatasetEntry], processor: Processor, split: str = "train") -> list[Source]:
    """The datasets of a configuration section with their text processors (of ``split``, else of ``train``).

    Raises:
        ConfigError: an image size that is not the model's, a batch size below 1, a negative ratio.
        DataError: files that are missing or of another shape.
    """
    return [build_source(name, entry, processor.image.config.size, split) for name, entry in entries.items()]


def build_source(name: str, entry: DatasetEntry, image_size: int, split: str = "train") -> Source:
    """One dataset of a configuration with its text processor; a format with ``clean`` gets the processor there.

    Raises:
        ConfigError, DataError: as :func:`build_sources`.
    """
    expected = entry.vis_processor.get(split, {}).get("image_size")
    if expected is not None and expected != image_size:
        raise ConfigError(
            f"datasets.{name}.vis_processor.{split}.image_size is {expected}, "
            f"but the model takes images of {image_size}",
            fix="set both to the same size",
        )
    ratio = 1.0 if entry.sample_ratio is None else float(entry.sample_ratio)
    if entry.batch_size < 1 or ratio < 0:
        raise ConfigError(f"datasets.{name}: batch_size {entry.batch_size} and sample_ratio {ratio} make no batch")
    options = dict(entry.text_processor.get(split) or entry.text_processor.get("train") or {})
    text = None
    if options:
        kind = resolve("processor", options.pop("name", "blip_caption"))
        text = kind(kind.Config(**options))
    dataset = resolve("dataset", entry.format.name)(entry.format.config)
    if hasattr(dataset, "clean"):
        dataset.clean = text
    return Source(name, dataset, entry.batch_size, ratio, text, entry.group, entry.data_type == "text")


class TrainLoader:
    """Endless batches of one rank.

    ``mixing="batch"``: every step draws one dataset by its ratio and takes a whole batch of it; ``"sample"``:
    every sample draws its dataset, and a batch has ``batch_size`` of them (default: the largest of the datasets);
    ``"joint"``: batches of the sources' ``groups`` take turns (default size: the largest of the group).
    Global jobs are cut ``r::world_size``. ``group_by_length``: :class:`~vlm.datasets.loading.batching.LengthGrouped`;
    ``packing`` (implies ``"sample"``, counts rows): :class:`~vlm.datasets.loading.batching.FirstFitPacker`.

    The batches follow from (seed, position) alone: not from the number of workers. Which samples are read
    does not depend on the number of processes either. ``state_dict()`` belongs to the batch handed out last,
    however far the workers have read ahead, and holds numbers only.
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
        mixing: Literal["batch", "sample", "joint"] = "batch",
        batch_size: int | None = None,
        group_by_length: int = 0,
        packing: Packing | None = None,
        visual_tokens: VisualTokens | None = None,
        pin_memory: bool = False,
    ) -> None:
        """``visual_tokens``: positions that media take in the LLM.

        Raises DataError for no dataset or an empty one, ConfigError when no ratio is positive or groups are wrong.
        """
        if not sources:
            raise DataError("no dataset to train on", fix="name at least one under datasets:")
        weights = [s.ratio for s in sources]
        if sum(weights) <= 0:
            raise ConfigError(f"sample_ratio of {', '.join(s.name for s in sources)}: none is above 0")
        self.sources, self._mixing = list(sources), "sample" if packing else mixing
        self._groups = groups_of(sources) if self._mixing == "joint" else {}
        self._batch_size = batch_size
        self._packing, self._group, self._seed = packing, group_by_length, seed
        self._rank, self._world_size, self._pin = rank, world_size, pin_memory
        self._sampler = JobSampler(
            [cursor(s.name, s.dataset, seed, number) for number, s in enumerate(sources)],
            [CHUNK] if packing else self._sizes(),
            weights,
            seed,
            rank,
            world_size,
            "sample" if packing else mixing,
            list(self._groups.values()),
            [lengths(sources, members) for members in self._groups.values()],
        )
        self._normalize = partial(processor.image.normalize, pin_memory=pin_memory)
        self._maker = BatchMaker(
            sources,
            processor.as_uint8() if num_workers else processor,
            seed=seed,
            batches=not (packing or group_by_length),
            visual_tokens=visual_tokens,
            limits=Limits(packing.max_tokens, packing.max_media) if packing else None,
        )
        self._pad_id = processor.pad_id
        self._options = loader_options(num_workers, pin_memory)
        if packing and num_workers:  # about as many steps ahead as finished batches would be
            self._options["prefetch_factor"] = max(2, 4 * self._sizes()[0] // CHUNK)
        self._quarantine, self._tally = Quarantine(output_dir, max_bad_share), DataStats()
        self._state: dict[str, Any] = {**self._sampler.state_dict(), "pending": {}}
        self._iterator: Iterator[WorkerResult] | None = None
        self._assembler = self._new_assembler()

    @classmethod
    def from_config(
        cls,
        entries: Mapping[str, DatasetEntry],
        processor: Processor,
        *,
        seed: int,
        **options: Any,
    ) -> TrainLoader:
        """The loader of a ``datasets:`` section. Raises as :func:`build_sources` and the constructor do."""
        sources = build_sources(entries, processor)
        if options.get("mixing") == "joint":
            ratios_from_sizes(entries, sources)
        return cls(sources, processor, seed=seed, **options)

    def _sizes(self) -> list[int]:
        """Samples of a batch: of each dataset with batch mixing, of each group with joint mixing, else one number."""
        if self._mixing == "batch":
            return [s.batch_size for s in self.sources]
        return batch_sizes(self.sources, list(self._groups.values()), self._batch_size)

    @property
    def groups(self) -> tuple[str, ...]:
        """With joint mixing the names of the groups, whose batches take turns; else none."""
        return tuple(self._groups)

    def _new_assembler(self) -> Assembler:
        if self._packing is not None:
            p = self._packing
            return FirstFitPacker(p.max_tokens, p.max_media, p.open_rows, self._sizes()[0])
        if self._group:
            return LengthGrouped(self._group, self._sizes(), self._mixing == "batch", self._seed)
        return Passthrough()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: too many bad records, or none usable in a row.
            PromptError: placeholders and media of a sample differ.
        """
        try:
            if self._iterator is None:
                self._start()
            while (result := self._assembler.pop()) is None:
                self._assembler.add(self._receive())
            return self._batch(result)
        except UserError:
            self.close()
            raise

    def _start(self) -> None:
        """Start reading at the current state; pending samples are read again first."""
        held = pending(self._state["pending"])
        self._sampler.load_state_dict(self._state, held)
        loader = torch.utils.data.DataLoader(self._maker, sampler=self._sampler, **self._options)
        iterator: Iterator[WorkerResult] = iter(loader)
        items = {}
        for _ in range(0, len(held), CHUNK):
            done = next(iterator)
            if done.error is not None:
                raise done.error
            self._sampler.states.popleft()
            items.update({item.key: item for item in done.chunk.items} if done.chunk else {})
        self._assembler = self._new_assembler()
        self._assembler.load_state_dict(self._state["pending"], items)
        self._iterator = iterator

    def _receive(self) -> WorkerResult:
        """The next delivery, counted."""
        assert self._iterator is not None
        done = next(self._iterator)
        for name in dict.fromkeys([*done.good, *(b.source for b in done.bad)]):
            self._quarantine.add(name, done.good.get(name, 0), [b for b in done.bad if b.source == name])
        if done.error is not None:
            raise done.error
        self._state = self._sampler.states.popleft()
        return done

    def _batch(self, found: WorkerResult | Rows) -> Batch:
        if isinstance(found, WorkerResult):
            assert found.batch is not None
            assert found.measure is not None
            self._tally.add(found.measure)
            group = next(s.group for s in self.sources if s.name in found.measure.samples) if self._groups else ""
            return finalize_pixels(replace(found.batch, group=group), self._normalize)
        unify_dtypes([item.example for row in found for item in row], self._normalize)
        batch = collate_rows([[item.example for item in row] for row in found], self._pad_id)
        self._tally.add(measure(found, [s.name for s in self.sources]))
        return finalize_pixels(batch.pin_memory() if self._pin else batch, self._normalize)

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Of this rank, per source: samples and tokens of the batches so far, bad records, wanted share of samples."""
        parts = wanted(self.sources, self._sizes(), list(self._groups.values()), self._mixing == "batch")
        return {
            s.name: {
                "samples": self._tally.samples.get(s.name, 0),
                "bad": self._quarantine.bad.get(s.name, 0),
                "tokens": self._tally.tokens.get(s.name, 0),
                "wanted": part / sum(parts),
            }
            for s, part in zip(self.sources, parts, strict=True)
        }

    def report(self) -> Report:
        """:attr:`counts` and the positions they took, for :mod:`vlm.datasets.loading.data_stats`."""
        return {"sources": self.counts, "positions": self._tally.positions}

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches in one pass, where that is known: a single map-style dataset, or all of the first joint group.

        It is not known for packed rows, nor for a group whose shares do not follow from its datasets' sizes.
        """
        group = next(iter(self._groups.values()), range(len(self.sources)))
        result = lengths(self.sources, group) if self._groups or len(group) == 1 else None
        return None if result is None or self._packing else max(sum(result) // (self._sizes()[0] * self._world_size), 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from: a few integers per dataset, and three for every pending sample."""
        held = self._state["pending"] if self._iterator is None else self._assembler.state_dict()
        counts = {"tally": self._tally.state_dict(), "records": self._quarantine.state_dict()}
        return {**self._state, "pending": held, **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch at which ``state`` was taken.

        Raises:
            DataError: the saved run had other datasets, one of another length, or other batches.
        """
        self.close()
        self._sampler.check(state)
        if bool(state["pending"]) and isinstance(self._new_assembler(), Passthrough):
            raise DataError(
                f"the saved run holds {len(pending(state['pending']))} samples for packed rows or length groups",
                fix="resume with the same run.packing and run.group_by_length",
            )
        self._tally.load_state_dict(state["tally"])
        self._quarantine.load_state_dict(state["records"])
        self._state = {key: value for key, value in state.items() if key not in ("tally", "records")}

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on after the batches at which all processes of a run took ``states`` (in order of rank).

        With another number of processes now, the position is divided anew: :mod:`vlm.datasets.loading.elastic_resume`.

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


def loader_options(num_workers: int, pin_memory: bool) -> dict[str, Any]:
    """Options of torch's DataLoader; a generator of its own, or it would draw from the global state of a run."""
    return {
        "generator": torch.Generator(),
        "batch_size": None,
        "collate_fn": as_is,
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "worker_init_fn": start_worker if num_workers else None,
    }
