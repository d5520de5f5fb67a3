"""What a loader worker does with a job: read, decode and tokenise its samples. Pickles into other processes."""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vlm.common.errors import DataError, UserError
from vlm.common.types import Example
from vlm.config.run import Packing
from vlm.datasets.base import RECORD_FAULTS, StreamDataset
from vlm.datasets.loading.mixing import derive_seed
from vlm.datasets.loading.sampler import Job, Key, Ref
from vlm.datasets.loading.sources import BadRecord, Source, read_sample
from vlm.processors.collate import VisualTokens
from vlm.processors.processor import Processor

REPLACEMENTS = 10
"""How many other records are tried in place of a bad one of a map-style dataset."""


@dataclass
class EncodedSample:
    """A sample ready for a row: its reference, what the processor made of it, its positions in the LLM."""

    key: Key
    example: Example
    tokens: int


@dataclass
class WorkerResult:
    """A finished job: its samples, usable records by source, bad records; or the error that ends the run.

    Pickled, all media of one shape and type travel as one tensor, since each tensor costs a handle of shared memory.
    They arrive in the main process as views of it (``shared``).
    """

    samples: list[EncodedSample] = field(default_factory=list)
    good: dict[str, int] = field(default_factory=dict)
    bad: list[BadRecord] = field(default_factory=list)
    error: UserError | None = None
    shared: bool = False
    last: bool = False  # as in Job

    def __getstate__(self) -> dict[str, Any]:
        groups: dict[tuple[Any, ...], list[torch.Tensor]] = {}
        kinds, without = [], []
        for sample in self.samples:
            tensors = list[torch.Tensor]()
            without.append(replace(sample, example=mapped(sample.example, tensors.append)))
            kinds.append([(m.dtype, *m.shape) for m in tensors])
            for kind, medium in zip(kinds[-1], tensors, strict=True):
                groups.setdefault(kind, []).append(medium)
        # in a worker default_collate stacks straight into shared memory
        media = {kind: torch.utils.data.default_collate(m) for kind, m in groups.items()}
        return {**vars(self), "samples": without, "shared": True, "kinds": kinds, "media": media}

    def __setstate__(self, state: dict[str, Any]) -> None:
        following = {kind: iter(stacked) for kind, stacked in state.pop("media").items()}
        for sample, own in zip(state["samples"], state.pop("kinds"), strict=True):
            kinds = iter(own)
            sample.example = mapped(sample.example, lambda _, kinds=kinds: next(following[next(kinds)]))  # type: ignore[misc]
        vars(self).update(state)

    def owned(self) -> list[EncodedSample]:
        """The samples with media of their own, so that waiting samples do not hold the shared memory of a whole job."""
        for sample in self.samples if self.shared else ():
            sample.example = mapped(sample.example, torch.clone)
        return self.samples


def mapped(example: Example, fn: Callable[[Any], Any]) -> Example:
    """The example with ``fn`` of its pixels and its stored features, in the order of its media."""
    media = [m if m is not None and m.is_meta else fn(m) for m in example.media]
    stored = [
        m if m is None or m.features is None else replace(m, features=replace(m.features, tokens=fn(m.features.tokens)))
        for m in example.stored
    ]
    return replace(example, media=media, stored=stored)


@dataclass
class SampleReader:
    """Job -> WorkerResult; the same job gives the same result in every process."""

    sources: Sequence[Source]  # numbered as in the references of a job
    processor: Processor
    seed: int  # of all random choices
    replace_bad: bool = True  # by another record; otherwise it is left out
    augment: bool = True  # apply the training part of the media recipes
    visual_tokens: VisualTokens = field(default_factory=VisualTokens)  # positions that media take in the LLM
    packing: Packing | None = None  # limits of a single sample

    def __getitem__(self, job: Job) -> WorkerResult:
        bad: list[BadRecord] = []
        try:
            read = [self._usable(job, place, ref, bad) for place, ref in job.refs]
        except UserError as error:
            return WorkerResult(bad=bad, error=error)
        samples = [sample for sample in read if sample is not None]
        return WorkerResult(samples, Counter(self.sources[s.key[0]].name for s in samples), bad, last=job.last)

    def _usable(self, job: Job, place: int, ref: Ref, bad: list[BadRecord]) -> EncodedSample | None:
        source, own = self.sources[ref.source], list[BadRecord]()
        for candidate in [ref, *(() if job.restore else self._replacements(job, place, ref))]:
            try:
                return self._encode(source, candidate)
            except RECORD_FAULTS as error:
                own.append(BadRecord(source.name, candidate.name, str(error)))
                bad += own[-1:] if own[-1] not in bad else []
            if not self.replace_bad:
                return None
        reasons = "; ".join(f"{b.key}: {b.reason}" for b in own[:3])
        if job.restore:
            raise DataError(
                f"dataset {source.name}: a record that the saved run had read cannot be used now: {reasons}",
                fix="resume with the data of the saved run, or start a new run from the checkpoint's weights",
            )
        raise DataError(
            f"dataset {source.name}: {len(own)} records in a row cannot be used: {reasons}",
            fix="run `vlm data check` to list every bad record of the dataset",
        )

    def _replacements(self, job: Job, place: int, ref: Ref) -> Iterator[Ref]:
        """Seeded random indices (bad records tend to be adjacent), or the next records of a stream."""
        dataset = self.sources[ref.source].dataset
        if not isinstance(dataset, StreamDataset):
            n = len(dataset)
            # the seed's text decides which records training sees: never change it
            rng = random.Random(derive_seed(self.seed, "stand-in", ref.source, ref.epoch, ref.index))
            offsets = rng.sample(range(1, n), min(REPLACEMENTS, n - 1))
            yield from (Ref(ref.epoch, (ref.index + k) % n, None, ref.source) for k in offsets)
            return
        lookahead = job.lookahead.get(ref.source, ())
        yield from (lookahead[(place + k) % len(lookahead)] for k in range(len(lookahead)))
        others = [other for _, other in job.refs] if job.spare is None else job.spare
        yield from (other for other in others if other != ref and other.source == ref.source)

    def _encode(self, source: Source, ref: Ref) -> EncodedSample:
        rng = random.Random(derive_seed(self.seed, "sample", source.name, ref.epoch, ref.index))
        example = self.processor.encode_train(read_sample(source, ref, self.seed), rng, augment=self.augment)
        return EncodedSample(ref.key, example, fitting_length(source, example, self.visual_tokens, self.packing))


def fitting_length(source: Source, example: Example, visual_tokens: VisualTokens, packing: Packing | None) -> int:
    """Positions of an example in the LLM.

    Raises DataError: media in a dataset of texts, or more than a packed row holds.
    """
    if source.text_only and example.media:
        raise DataError(
            f"datasets.{source.name}.data_type is text, but sample {example.id} has {len(example.media)} media",
            fix=f"set datasets.{source.name}.data_type to images, and its group to one with images",
        )
    tokens = visual_tokens.fused_length(example)
    if packing is not None:
        found = {"tokens": (tokens, packing.max_tokens), "media": (len(example.media), packing.max_media)}
        for what, (count, limit) in found.items():
            if limit is not None and count > limit:
                raise DataError(
                    f"sample {example.source}/{example.id} has {count} {what}, but run.packing.max_{what} is {limit}",
                    fix=f"raise run.packing.max_{what} or leave the sample out",
                )
    return tokens


def start_worker(_worker: int) -> None:
    """Worker start-up: leave a stop signal sent to the whole process group to the main process.

    The main process saves and then ends its workers; it would fail if a worker died first. So a worker obeys a SIGTERM
    from its parent only.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_asked, args=(os.getppid(),), daemon=True).start()


def _exit_when_asked(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def data_loader(maker: Any, jobs: Iterable[Any], num_workers: int, **options: Any) -> Any:
    """torch's DataLoader over ``maker[job]``, in order, in ``num_workers`` processes (0: in this one).

    Its generator is its own: it would otherwise draw from the global random state of a run. The first lines of a run
    state workers and cores; torch's own warning about them would repeat it.
    """
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    return torch.utils.data.DataLoader(
        maker,
        sampler=jobs,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=start_worker if num_workers else None,
        generator=torch.Generator(),
        **options,
    )
