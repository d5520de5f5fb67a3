"""What a loader worker does with a job: read, decode, tokenise, collate. Pickles into other processes."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vlm.common.errors import DataError, UserError
from vlm.common.types import Batch, Example, Sample
from vlm.datasets.base import StreamDataset, process_text
from vlm.datasets.mixing import derive_seed
from vlm.datasets.sampler import Job, Ref
from vlm.processors.collate import collate, pack
from vlm.processors.processor import Processor

TRIES = 10
"""How many records after a bad one are tried in its place."""


@dataclass
class Source:
    """A dataset of a run: its corpus name, batch size per rank, share of the steps, text processor."""

    name: str
    dataset: Any
    batch_size: int = 1
    ratio: float = 1.0
    text: Callable[[str], str] | None = None


@dataclass(frozen=True)
class Bad:
    """A record that could not be used."""

    source: str
    key: str
    reason: str


@dataclass
class Delivered:
    """A finished job: the batch (None if nothing was left of it), the bad records, or the user's fault."""

    source: int
    batch: Batch | None
    samples: int
    bad: list[Bad] = field(default_factory=list)
    error: UserError | None = None

    def pin_memory(self) -> Delivered:
        """Called by torch's DataLoader."""
        return replace(self, batch=None if self.batch is None else self.batch.pin_memory())


class BatchMaker(torch.utils.data.Dataset):
    """Job -> Delivered; the same job always gives the same batch, in whatever process."""

    def __init__(
        self,
        sources: Sequence[Source],
        processor: Processor,
        *,
        seed: int,
        substitute: bool = True,
        pack_tokens: int = 0,
        tokens_per_medium: int = 1,
    ) -> None:
        """``substitute``: a bad record is replaced by the next usable one, otherwise left out.

        ``pack_tokens``: longest packed row in positions, 0 for one sample per row.
        """
        self._sources, self._processor, self._seed = list(sources), processor, seed
        self._substitute, self._pack_tokens, self._tokens_per_medium = substitute, pack_tokens, tokens_per_medium

    def __getitem__(self, job: Job) -> Delivered:
        bad: list[Bad] = []
        try:
            found = [self._usable(job, place, ref, bad) for place, ref in job.refs]
            examples = [e for e in found if e is not None]
            batch = self._collate(examples) if examples else None
        except UserError as error:
            return Delivered(job.source, None, 0, bad, error)
        return Delivered(job.source, batch, len(examples), bad)

    def _collate(self, examples: list[Example]) -> Batch:
        if self._pack_tokens:
            return pack(examples, self._processor.pad_id, self._pack_tokens, self._tokens_per_medium)
        return collate(examples, self._processor.pad_id)

    def _usable(self, job: Job, place: int, ref: Ref, bad: list[Bad]) -> Example | None:
        source = self._sources[job.source]
        for candidate in [ref, *self._others(job, place, ref)]:
            try:
                return self._example(source, candidate)
            except DataError as error:
                item = Bad(source.name, self._key(candidate), str(error))
                if item not in bad:
                    bad.append(item)
            if not self._substitute:
                return None
        reasons = "; ".join(b.reason for b in bad[:3])
        raise DataError(f"dataset {source.name}: {len(bad)} records in a row cannot be used: {reasons}")

    def _others(self, job: Job, place: int, ref: Ref) -> Iterator[Ref]:
        """Stand-ins in a fixed order: the following indices, or the spares from this place on."""
        dataset = self._sources[job.source].dataset
        if not isinstance(dataset, StreamDataset):
            n = len(dataset)
            yield from (Ref(ref.epoch, (ref.index + k) % n) for k in range(1, min(TRIES, n - 1) + 1))
            return
        yield from (job.spares[(place + k) % len(job.spares)] for k in range(len(job.spares)))
        yield from (other for _, other in job.refs if other != ref)

    def _example(self, source: Source, ref: Ref) -> Example:
        dataset = source.dataset
        sample = self._sample(source, ref)
        sample = replace(sample, source=source.name, id=sample.id or str(ref.index))
        roles = getattr(getattr(dataset, "config", None), "text_roles", ())
        if source.text is not None and roles:
            sample = process_text(sample, source.text, roles)
        rng = random.Random(derive_seed(self._seed, "sample", source.name, ref.epoch, ref.index))
        return self._processor.encode_train(sample, rng)

    def _sample(self, source: Source, ref: Ref) -> Sample:
        dataset = source.dataset
        stream = isinstance(dataset, StreamDataset)
        if hasattr(dataset, "draw"):
            rng = random.Random(derive_seed(self._seed, "draw", source.name, ref.epoch, ref.index))
            return dataset.draw(ref.raw if stream else ref.index, rng)
        return dataset.decode(ref.raw) if stream else dataset[ref.index]

    @staticmethod
    def _key(ref: Ref) -> str:
        return str(getattr(ref.raw, "key", ref.index))


def start_worker(_worker: int) -> None:
    """Worker start-up: a stop signal to the whole process group is the main process's business.

    The main process then saves and ends its workers; a worker that died first would make it fail. So a
    worker takes SIGTERM from its parent only.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_told, args=(os.getppid(),), daemon=True).start()


def _leave_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def as_is(item: Any) -> Any:
    """Collate function of a loader whose items are finished batches."""
    return item
