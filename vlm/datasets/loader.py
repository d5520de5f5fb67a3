"""Batches for training (endless, resumable) and for validation (one ordered pass)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.common.errors import ConfigError, DataError, UserError
from vlm.common.registry import resolve
from vlm.common.types import Batch
from vlm.datasets.base import StreamDataset
from vlm.datasets.quarantine import Quarantine
from vlm.datasets.sampler import Job, JobSampler, Ref, cursor, empty
from vlm.datasets.worker import BatchMaker, Delivered, Source, as_is, start_worker
from vlm.processors.processor import Processor

if TYPE_CHECKING:
    from vlm.common.config import DatasetEntry


def build_sources(entries: Mapping[str, DatasetEntry], processor: Processor, split: str = "train") -> list[Source]:
    """The datasets of a configuration section with their text processors (of ``split``, else of ``train``).

    Raises:
        ConfigError: a picture size that is not the model's, a batch size below 1, a negative ratio.
        DataError: files that are missing or of another shape.
    """
    sources = []
    for name, entry in entries.items():
        wanted = entry.vis_processor.get(split, {}).get("image_size")
        if wanted is not None and wanted != processor.image.config.size:
            raise ConfigError(
                f"datasets.{name}.vis_processor.{split}.image_size is {wanted}, "
                f"but the model takes pictures of {processor.image.config.size}",
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
        sources.append(Source(name, dataset, entry.batch_size, ratio, text))
    return sources


class TrainLoader:
    """Endless batches of one rank.

    Every step draws one dataset by its ratio and takes a whole batch of it; the global batch is cut
    ``r::world_size``. The batches follow from (seed, step) alone: not from the number of workers, and
    together not from the number of processes. ``state_dict()`` belongs to the batch handed out last,
    however far the workers have read ahead.
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
        pack_tokens: int = 0,
        tokens_per_medium: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Raises DataError for no dataset or an empty one, ConfigError when no ratio is positive."""
        if not sources:
            raise DataError("no dataset to train on", fix="name at least one under datasets:")
        weights = [s.ratio for s in sources]
        if sum(weights) <= 0:
            raise ConfigError(f"sample_ratio of {', '.join(s.name for s in sources)}: none is above 0")
        self.sources = list(sources)
        self._sampler = JobSampler(
            [cursor(s.name, s.dataset, seed) for s in sources],
            [s.batch_size for s in sources],
            weights,
            seed,
            rank,
            world_size,
        )
        self._maker = BatchMaker(
            sources, processor, seed=seed, pack_tokens=pack_tokens, tokens_per_medium=tokens_per_medium
        )
        self._options = _loader_options(num_workers, pin_memory)
        self._quarantine = Quarantine(output_dir, max_bad_share)
        self._world_size = world_size
        self._state = self._sampler.state_dict()
        self._iterator: Iterator[Delivered] | None = None

    @classmethod
    def from_config(
        cls,
        entries: Mapping[str, DatasetEntry],
        processor: Processor,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        output_dir: str | Path | None = None,
        **options: Any,
    ) -> TrainLoader:
        """The loader of a ``datasets:`` section. Raises as :func:`build_sources` and the constructor do."""
        sources = build_sources(entries, processor)
        return cls(
            sources,
            processor,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            output_dir=output_dir,
            **options,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: too many bad records, or none usable in a row.
            PromptError: marks and media of a sample differ.
        """
        try:
            return self._next()
        except UserError:
            self.close()
            raise

    def _next(self) -> Batch:
        if self._iterator is None:
            self._sampler.load_state_dict(self._state)
            loader = torch.utils.data.DataLoader(self._maker, sampler=self._sampler, **self._options)
            self._iterator = iter(loader)
        done = next(self._iterator)
        if done.error is not None:
            raise done.error
        self._state = self._sampler.states.popleft()
        self._quarantine.add(self.sources[done.source].name, done.samples, done.bad)
        if done.batch is None:
            raise DataError(f"dataset {self.sources[done.source].name}: an empty batch")
        return done.batch

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Samples used and bad records per source, of this rank."""
        q = self._quarantine
        return {s.name: {"samples": q.good.get(s.name, 0), "bad": q.bad.get(s.name, 0)} for s in self.sources}

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches in one pass, where that means something: a single map-style dataset."""
        if len(self.sources) != 1 or isinstance(self.sources[0].dataset, StreamDataset):
            return None
        return max(len(self.sources[0].dataset) // (self.sources[0].batch_size * self._world_size), 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from: a few integers per dataset."""
        return {**self._state, "counts": self._quarantine.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch at which ``state`` was taken.

        Raises:
            DataError: the saved run had other datasets, or one of another length.
        """
        self.close()
        self._sampler.load_state_dict(state)
        self._state = {key: state[key] for key in ("step", "sources")}
        self._quarantine.load_state_dict(state["counts"])

    def close(self) -> None:
        """End the workers; the next batch starts them again at the current state."""
        self._iterator = None


class ValidLoader:
    """One ordered pass per iteration over all sources; bad records are left out and logged.

    Of each global batch, rank r takes ``r::world_size``; a rank may get fewer batches than another.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        processor: Processor,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        max_samples: int | None = None,
        output_dir: str | Path | None = None,
    ) -> None:
        """``max_samples``: stop each source after so many (of all ranks together)."""
        self.sources = list(sources)
        self._rank, self._world_size, self._max = rank, world_size, max_samples
        self._maker = BatchMaker(sources, processor, seed=seed, substitute=False)
        self._options = _loader_options(num_workers, False)
        self._output_dir = output_dir

    @classmethod
    def from_config(cls, entries: Mapping[str, DatasetEntry], processor: Processor, **options: Any) -> ValidLoader:
        """The loader of a ``valid_datasets:`` section. Raises as :func:`build_sources` does."""
        return cls(build_sources(entries, processor, "eval"), processor, **options)

    def __iter__(self) -> Iterator[Batch]:
        """One pass. Raises DataError when records are bad beyond the allowed share."""
        quarantine = Quarantine(self._output_dir)
        loader = torch.utils.data.DataLoader(self._maker, sampler=_Jobs(self), **self._options)
        for done in loader:
            if done.error is not None:
                raise done.error
            quarantine.add(self.sources[done.source].name, done.samples, done.bad)
            if done.batch is not None:
                yield done.batch

    def jobs(self) -> Iterator[Job]:
        """The jobs of this rank, in order. Raises DataError for an empty source."""
        step = 0
        for number, source in enumerate(self.sources):
            size = source.batch_size * self._world_size
            held: list[Ref] = []
            ref = None
            for ref in _in_order(source.dataset, self._max):
                held.append(ref)
                if len(held) == size:
                    yield self._job(step, number, held)
                    held, step = [], step + 1
            if ref is None:
                raise empty(source.name)
            if len(held) > self._rank:
                yield self._job(step, number, held)
                step += 1

    def _job(self, step: int, number: int, refs: list[Ref]) -> Job:
        return Job(step, number, tuple(enumerate(refs))[self._rank :: self._world_size])


class _Jobs:
    """Lets torch's DataLoader iterate the jobs of a ValidLoader again and again."""

    def __init__(self, loader: ValidLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Job]:
        return self._loader.jobs()


def _in_order(dataset: Any, limit: int | None) -> Iterator[Ref]:
    if isinstance(dataset, StreamDataset):
        for index, raw in enumerate(dataset.records(None)):
            if limit is not None and index >= limit:
                return
            yield Ref(0, index, raw)
        return
    yield from (Ref(0, i) for i in range(min(len(dataset), len(dataset) if limit is None else limit)))


def _loader_options(num_workers: int, pin_memory: bool) -> dict[str, Any]:
    """Options of torch's DataLoader; a generator of its own, or it would draw from the global state of a run."""
    return {
        "generator": torch.Generator(),
        "batch_size": None,
        "collate_fn": as_is,
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "worker_init_fn": start_worker if num_workers else None,
    }
