"""Batches for validation: one ordered pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.types import Batch
from vlm.datasets.base import records_in_order
from vlm.datasets.loading.batching import make_batch
from vlm.datasets.loading.quarantine import Quarantine
from vlm.datasets.loading.sampler import Job, Ref, empty
from vlm.datasets.loading.sources import Source, build_sources
from vlm.datasets.loading.worker import SampleReader, data_loader
from vlm.processors.processor import Processor

if TYPE_CHECKING:
    from vlm.config.api import DatasetEntry


class ValidLoader:
    """One ordered pass per iteration over all sources; bad records are logged and left out.

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
        """``max_samples``: of each source, of all ranks together; None for all."""
        self.sources = list(sources)
        self._rank, self._world_size, self._max = rank, world_size, max_samples
        self._processor, self._num_workers, self._output_dir = processor, num_workers, output_dir
        self._reader = SampleReader(sources, processor, seed=seed, replace_bad=False, augment=False)

    @classmethod
    def from_config(cls, entries: Mapping[str, DatasetEntry], processor: Processor, **options: Any) -> ValidLoader:
        """The loader of a ``valid_datasets:`` section. Raises as :func:`build_sources` does."""
        return cls(build_sources(entries, processor, "eval"), processor, **options)

    def __iter__(self) -> Iterator[Batch]:
        """One pass. Raises DataError for an empty source, and when too many records are bad."""
        quarantine = Quarantine(self._output_dir)
        for result in data_loader(self._reader, self.jobs(), self._num_workers):
            if result.error is not None:
                raise result.error
            quarantine.count(result.good, result.bad)
            if result.samples:
                yield make_batch([[sample] for sample in result.samples], self._processor)

    def jobs(self) -> Iterator[Job]:
        """The jobs of this rank, in order. Raises DataError for an empty source."""
        for number, source in enumerate(self.sources):
            refs = (Ref(0, index, raw, number) for index, raw in records_in_order(source.dataset, self._max))
            found = False
            while batch := tuple(enumerate(islice(refs, source.batch_size * self._world_size))):
                found = True
                if len(batch) > self._rank:
                    yield Job(batch[self._rank :: self._world_size])
            if not found:
                raise empty(source.name)
