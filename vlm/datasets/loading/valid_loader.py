"""Batches for validation: one ordered pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.common.types import Batch
from vlm.datasets.base import records_in_order
from vlm.datasets.loading.quarantine import Quarantine
from vlm.datasets.loading.sampler import Job, Ref, empty
from vlm.datasets.loading.train_loader import build_sources, loader_options
from vlm.datasets.loading.worker import BatchMaker, Source
from vlm.processors.processor import Processor

if TYPE_CHECKING:
    from vlm.config.api import DatasetEntry


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
        self._maker = BatchMaker(sources, processor, seed=seed, substitute=False, augment=False)
        self._options = loader_options(num_workers, False)
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
            for name in dict.fromkeys([*done.good, *(b.source for b in done.bad)]):
                quarantine.add(name, done.good.get(name, 0), [b for b in done.bad if b.source == name])
            if done.batch is not None:
                yield done.batch

    def jobs(self) -> Iterator[Job]:
        """The jobs of this rank, in order. Raises DataError for an empty source."""
        step = 0
        for number, source in enumerate(self.sources):
            size = source.batch_size * self._world_size
            pending: list[Ref] = []
            ref = None
            for index, raw in records_in_order(source.dataset, self._max):
                ref = Ref(0, index, raw, number)
                pending.append(ref)
                if len(pending) == size:
                    yield self._job(step, pending)
                    pending, step = [], step + 1
            if ref is None:
                raise empty(source.name)
            if len(pending) > self._rank:
                yield self._job(step, pending)
                step += 1

    def _job(self, step: int, refs: list[Ref]) -> Job:
        return Job(step, tuple(enumerate(refs))[self._rank :: self._world_size])


class _Jobs:
    """Lets torch's DataLoader iterate the jobs of a ValidLoader again and again."""

    def __init__(self, loader: ValidLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Job]:
        return self._loader.jobs()
