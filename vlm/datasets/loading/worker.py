"""What a loader worker does with a job: read, decode, tokenise, collate. Pickles into other processes."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vlm.common.errors import ConfigError, DataError, UserError
from vlm.common.types import Batch, Example, Sample
from vlm.datasets.base import StreamDataset, process_text
from vlm.datasets.loading.mixing import derive_seed
from vlm.datasets.loading.sampler import Job, Key, Ref
from vlm.processors.collate import VisualTokens, collate, unify_dtypes
from vlm.processors.processor import Processor

TRIES = 10
"""How many records after a bad one are tried in its place."""


@dataclass
class Source:
    """A dataset of a run: its corpus name, batch size per rank, share of the steps, text processor.

    ``group``: the one it is trained in with ``mixing: joint``. ``text_only``: its samples may have no media.
    """

    name: str
    dataset: Any
    batch_size: int = 1
    ratio: float = 1.0
    text: Callable[[str], str] | None = None
    group: str = ""
    text_only: bool = False


@dataclass(frozen=True)
class Bad:
    """A record that could not be used."""

    source: str
    key: str
    reason: str


@dataclass
class EncodedSample:
    """A sample that is ready for a row: where it came from, what the processor made of it, its positions there."""

    key: Key
    example: Example
    tokens: int


@dataclass
class EncodedChunk:
    """Items on their way to the main process. Pickled, all media of one shape and type travel as one tensor.

    Each tensor costs a handle of shared memory; the media that arrive are copies, so that it is freed at once.
    """

    items: list[EncodedSample]

    def __getstate__(self) -> dict[str, Any]:
        groups: dict[tuple[Any, ...], list[torch.Tensor]] = {}
        kinds = [[(m.dtype, *m.shape) for m in item.example.media] for item in self.items]
        for item, own in zip(self.items, kinds, strict=True):
            for kind, medium in zip(own, item.example.media, strict=True):
                groups.setdefault(kind, []).append(medium)
        bare = [replace(item, example=replace(item.example, media=[])) for item in self.items]
        return {"items": bare, "kinds": kinds, "media": {k: torch.stack(v) for k, v in groups.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        following = {kind: iter(stacked) for kind, stacked in state["media"].items()}
        self.items = state["items"]
        for item, own in zip(self.items, state["kinds"], strict=True):
            item.example.media = [next(following[kind]).clone() for kind in own]


@dataclass
class BatchStats:
    """What rows hold: samples and tokens by source, tokens including visual ones, positions including padding."""

    samples: dict[str, int]
    tokens: dict[str, int]
    positions: int


@dataclass
class WorkerResult:
    """A finished job: its batch (None if nothing was left of it) or its items, the bad records, or the user's fault.

    ``good``: usable records by source. ``measure`` goes with a batch.
    """

    batch: Batch | None = None
    chunk: EncodedChunk | None = None
    good: dict[str, int] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    measure: BatchStats | None = None
    error: UserError | None = None

    def pin_memory(self) -> WorkerResult:
        """Called by torch's DataLoader."""
        return replace(self, batch=None if self.batch is None else self.batch.pin_memory())


@dataclass(frozen=True)
class Limits:
    """What a single sample may need at most; None is no limit."""

    max_tokens: int | None = None
    max_media: int | None = None

    def check(self, item: EncodedSample) -> None:
        """Raises DataError for a sample that does not fit into any row."""
        media = len(item.example.media)
        for result, most, what in ((item.tokens, self.max_tokens, "tokens"), (media, self.max_media, "media")):
            if most is not None and result > most:
                raise DataError(
                    f"sample {item.example.source}/{item.example.id} has {result} {what}, "
                    f"but run.packing.max_{what} is {most}",
                    fix=f"raise run.packing.max_{what} or leave the sample out",
                )


class BatchMaker(torch.utils.data.Dataset):
    """Job -> WorkerResult; the same job always gives the same, in whatever process."""

    def __init__(
        self,
        sources: Sequence[Source],
        processor: Processor,
        *,
        seed: int,
        substitute: bool = True,
        augment: bool = True,
        batches: bool = True,
        visual_tokens: VisualTokens | None = None,
        limits: Limits | None = None,
    ) -> None:
        """``substitute``: a bad record is replaced by the next usable one, otherwise left out.

        ``augment``: media pass the training part of their recipes.
        ``batches``: deliver finished batches, otherwise the items of a job. ``limits`` of a sample.
        """
        self._sources, self._processor, self._seed = list(sources), processor, seed
        self._substitute, self._batches, self._visual_tokens = substitute, batches, visual_tokens or VisualTokens()
        self._limits, self._augment = limits or Limits(), augment

    def __getitem__(self, job: Job) -> WorkerResult:
        bad: list[Bad] = []
        try:
            result = [self._usable(job, place, ref, bad) for place, ref in job.refs]
            items = [item for item in result if item is not None]
            done = self._finish(items) if self._batches and not job.restore else WorkerResult(chunk=EncodedChunk(items))
        except UserError as error:
            return WorkerResult(bad=bad, error=error)
        good = Counter(self._sources[i.key[0]].name for i in items)
        return replace(done, good=dict(good), bad=bad)

    def _finish(self, items: list[EncodedSample]) -> WorkerResult:
        if not items:
            return WorkerResult()
        rows = [[item] for item in items]
        examples = [item.example for item in items]
        unify_dtypes(examples, self._processor.image.normalize)
        batch = collate(examples, self._processor.pad_id)
        return WorkerResult(batch=batch, measure=measure(rows, [s.name for s in self._sources]))

    def _usable(self, job: Job, place: int, ref: Ref, bad: list[Bad]) -> EncodedSample | None:
        source, own = self._sources[ref.source], list[Bad]()
        for candidate in [ref, *(() if job.restore else self._replacements(job, place, ref))]:
            try:
                return self._item(source, candidate)
            except DataError as error:
                own.append(Bad(source.name, self._key(candidate), str(error)))
                bad += own[-1:] if own[-1] not in bad else []
            if not self._substitute:
                return None
        reasons = "; ".join(b.reason for b in own[:3])
        what = "of the saved run" if job.restore else "in a row"
        raise DataError(f"dataset {source.name}: {len(own)} records {what} cannot be used: {reasons}")

    def _replacements(self, job: Job, place: int, ref: Ref) -> Iterator[Ref]:
        """Stand-ins: indices drawn by the seed, for bad records stand together; or the lookahead from this place on."""
        dataset = self._sources[ref.source].dataset
        if not isinstance(dataset, StreamDataset):
            n = len(dataset)
            rng = random.Random(derive_seed(self._seed, "stand-in", ref.source, ref.epoch, ref.index))
            others = rng.sample(range(1, n), min(TRIES, n - 1))
            yield from (Ref(ref.epoch, (ref.index + k) % n, None, ref.source) for k in others)
            return
        lookahead = job.lookahead.get(ref.source, ())
        yield from (lookahead[(place + k) % len(lookahead)] for k in range(len(lookahead)))
        yield from (other for _, other in job.refs if other != ref and other.source == ref.source)

    def _item(self, source: Source, ref: Ref) -> EncodedSample:
        example = self._example(source, ref)
        if source.text_only and example.media:
            raise ConfigError(
                f"datasets.{source.name}.data_type is text, but sample {example.id} has {len(example.media)} media",
                fix=f"set datasets.{source.name}.data_type to images, and its group to one with images",
            )
        item = EncodedSample(ref.key, example, self._visual_tokens.fused_length(example))
        self._limits.check(item)
        return item

    def _example(self, source: Source, ref: Ref) -> Example:
        sample = read_sample(source, ref, self._seed)
        rng = random.Random(derive_seed(self._seed, "sample", source.name, ref.epoch, ref.index))
        return self._processor.encode_train(sample, rng, augment=self._augment)

    @staticmethod
    def _key(ref: Ref) -> str:
        return str(getattr(ref.raw, "key", ref.index))


def read_sample(source: Source, ref: Ref, seed: int) -> Sample:
    """The sample that training sees at ``ref``: drawn by ``seed``, named, its texts through the text processor.

    Raises:
        DataError: the record cannot be used.
    """
    dataset = source.dataset
    stream = isinstance(dataset, StreamDataset)
    if hasattr(dataset, "draw"):
        rng = random.Random(derive_seed(seed, "draw", source.name, ref.epoch, ref.index))
        sample = dataset.draw(ref.raw if stream else ref.index, rng)
    else:
        sample = dataset.decode(ref.raw) if stream else dataset[ref.index]
    sample = replace(sample, source=source.name, id=sample.id or str(ref.index))
    roles = getattr(getattr(dataset, "config", None), "text_roles", ())
    return process_text(sample, source.text, roles) if source.text is not None and roles else sample


def measure(rows: Sequence[Sequence[EncodedSample]], names: Sequence[str]) -> BatchStats:
    """Samples, tokens and positions of the rows of a batch; ``names`` of the sources by number."""
    samples: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for item in (item for row in rows for item in row):
        samples[names[item.key[0]]] += 1
        tokens[names[item.key[0]]] += item.tokens
    longest = max(sum(item.tokens for item in row) for row in rows)
    return BatchStats(dict(samples), dict(tokens), longest * len(rows))


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
