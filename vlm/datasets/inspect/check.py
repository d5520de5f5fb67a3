"""``vlm data check``: read every record, count unusable ones by reason, measure lengths."""

from __future__ import annotations

import copy
import os
import random
import re
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from vlm.common.errors import DataError
from vlm.common.owned import is_records, refuse_foreign_file
from vlm.common.types import Image, Sample
from vlm.config.run import Packing
from vlm.datasets.base import RECORD_FAULTS
from vlm.datasets.inspect.scan import Opened, chunks, encode, progress, references
from vlm.datasets.loading.cuts import CutCounts
from vlm.datasets.loading.mixing import derive_seed
from vlm.datasets.loading.quarantine import too_many
from vlm.datasets.loading.sampler import Ref
from vlm.datasets.loading.sources import BadRecord, Source, read_sample
from vlm.datasets.loading.worker import data_loader, fitting_length
from vlm.processors.collate import VisualTokens
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor
from vlm.processors.templates.base import BaseTemplate

RECORDS_PER_REASON = 3
"""Records shown for each reason."""

_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[/\\]\S*|\S*\d\S*")
"""What differs between records with the same fault: quoted texts, paths, numbers."""


def _blank(shape: tuple[int, ...], *_: Any, **__: Any) -> torch.Tensor:
    """Black pixels in place of those of a recipe; unlike a lambda, it pickles into workers."""
    return torch.zeros(shape)


def without_pixels(processor: Processor) -> Processor:
    """A processor with the same ids that reads no media; a video counts the most frames that are ever taken.

    Images are read where the number of their tokens depends on their size.
    """
    if not processor.image.fixed_size:
        return processor
    blind = copy.copy(processor)
    blind.image = partial(_blank, (3, 1, 1))  # type: ignore[assignment]
    if processor.video is not None:
        config: Any = processor.video.config if hasattr(processor.video, "config") else None
        blind.video = partial(_blank, (config.num_frames if hasattr(config, "num_frames") else 1, 3, 1, 1))
    return blind


@dataclass
class Seen:
    """A worker's results for a chunk of records: lengths and media of the usable ones, and the bad ones."""

    lengths: list[int] = field(default_factory=list)
    media: list[int] = field(default_factory=list)
    targets: int = 0
    missing: int = 0
    transparent: int = 0
    cuts: CutCounts = field(default_factory=CutCounts)
    bad: list[BadRecord] = field(default_factory=list)


@dataclass
class Checker:
    """References -> Seen; what training would leave out is bad here, for the same reason.

    Without ``processor`` (no tokenizer at hand) lengths are characters, records still go through the ``template``, and
    ``recipe`` reads the images if ``pixels``.
    """

    source: Source
    processor: Processor | None
    recipe: ImageRecipe
    questions: bool
    pixels: bool
    seed: int
    visual_tokens: VisualTokens
    template: BaseTemplate | None = None
    packing: Packing | None = None

    def __getitem__(self, refs: Sequence[Ref]) -> Seen:
        seen, before = Seen(), self.recipe.transparent
        for ref in refs:
            try:
                sample = read_sample(self.source, ref, self.seed)
                gone = missing_files(sample)
                if gone:
                    seen.missing += 1
                    raise DataError(f"no file {gone[0]}")
                self._measure(sample, ref, seen)
            except RECORD_FAULTS as error:
                seen.bad.append(BadRecord(self.source.name, ref.name, str(error)))
        seen.transparent = self.recipe.transparent - before
        return seen

    def _measure(self, sample: Sample, ref: Ref, seen: Seen) -> None:
        media = [m for message in sample.messages for m in message.media]
        rng = random.Random(derive_seed(self.seed, "sample", self.source.name, ref.epoch, ref.index))
        if self.processor is None:
            if self.template is not None and not self.questions:
                self.template.train_segments(sample, rng)
            for medium in media if self.pixels else ():
                if isinstance(medium, Image):
                    self.recipe(medium.source, f"{sample.source}/{sample.id}")
            length = sum(len(m.text) for m in sample.messages)
        else:
            example = encode(self.processor, sample, rng, self.questions)
            length = fitting_length(self.source, example, self.visual_tokens, self.packing)
            seen.targets += example.num_targets
            seen.cuts.add(example.cut)
        seen.lengths.append(length)
        seen.media.append(len(media))


def missing_files(sample: Sample) -> list[str]:
    """Paths of media that do not exist."""
    paths = [str(p.source) for m in sample.messages for p in m.media if isinstance(p.source, str | os.PathLike)]
    return [path for path in paths if not os.path.exists(path)]


@dataclass
class DatasetCheck:
    """The results of checking a dataset."""

    name: str
    format: str
    batch_size: int
    unit: str = "tokens"
    error: str = ""
    bad: int = 0
    missing: int = 0
    transparent: int = 0
    cuts: CutCounts = field(default_factory=CutCounts)
    targets: int = 0
    seconds: float = 0.0
    reasons: dict[str, tuple[int, list[BadRecord]]] = field(default_factory=dict)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    media: array[int] = field(default_factory=lambda: array("l"))

    @property
    def samples(self) -> int:
        """Usable records."""
        return len(self.lengths)

    def add(self, seen: Seen) -> None:
        """Add the results of a chunk."""
        self.lengths.extend(seen.lengths)
        self.media.extend(seen.media)
        self.targets += seen.targets
        self.missing += seen.missing
        self.transparent += seen.transparent
        self.cuts.merge(seen.cuts)
        self.bad += len(seen.bad)
        for item in seen.bad:
            kind = reason_kind(item.reason)
            count, examples = self.reasons.get(kind, (0, []))
            self.reasons[kind] = count + 1, [*examples, item][:RECORDS_PER_REASON]

    def verdict(self, max_bad_share: float) -> str:
        """Why a run on this dataset would fail; empty if it would work."""
        if self.error:
            return f"dataset {self.name} cannot be opened: {self.error.splitlines()[0]}"
        total = self.samples + self.bad
        if not self.samples:
            return f"dataset {self.name}: " + (f"none of {total} records can be used" if total else "0 records")
        if too_many(self.bad, total, max_bad_share):
            return f"dataset {self.name}: {self.bad} of {total} records cannot be used, allowed are {max_bad_share:.1%}"
        return ""


def reason_kind(reason: str) -> str:
    """A reason without the details of one record, so that equal faults are counted together."""
    first = reason.split("\n")[0]
    return re.sub(r"(… )+", "… ", _PARTICULAR.sub("…", first) + " ").strip()


def check_dataset(
    opened: Opened,
    processor: Processor | None,
    recipe: ImageRecipe,
    *,
    pixels: bool = False,
    workers: int = 0,
    seed: int = 0,
    limit: int | None = None,
    visual_tokens: VisualTokens | None = None,
    template: BaseTemplate | None = None,
    packing: Packing | None = None,
    quarantine: IO[str] | None = None,
) -> DatasetCheck:
    """Read every record (or the first ``limit``) of a dataset, in ``workers`` processes, with a progress bar.

    Args:
        opened: the dataset.
        processor: tokenises; None: lengths are characters.
        recipe: reads the images if there is no processor.
        pixels: also decode every image and video.
        workers: processes; 0: this one.
        seed: of the formats' random choices.
        limit: maximum number of records.
        visual_tokens: positions that media take in the LLM.
        template: what records go through if there is no processor.
        packing: limits of a single sample of the run.
        quarantine: where to write one JSON line for each bad record.
    """
    report = DatasetCheck(opened.name, opened.entry.format.name, opened.entry.batch_size, error=opened.error)
    report.unit = "tokens" if processor is not None else "characters"
    if opened.source is None:
        return report
    start = time.monotonic()
    taking = processor if processor is None or pixels else without_pixels(processor)
    limits = (visual_tokens or VisualTokens(), template, packing)
    checker = Checker(opened.source, taking, recipe, opened.questions, pixels, seed, *limits)
    total = opened.size if limit is None or opened.size is None else min(limit, opened.size)
    with progress(opened.name, total) as step:
        for seen in data_loader(checker, chunks(references(opened.source.dataset, limit)), workers):
            report.add(seen)
            step(len(seen.lengths) + len(seen.bad))
            if quarantine is not None:
                quarantine.writelines(item.line() for item in seen.bad)
    report.seconds = time.monotonic() - start
    return report


def open_quarantine(folder: str | Path) -> IO[str]:
    """``quarantine.jsonl`` in a folder, which is created if missing.

    Raises UserError: it cannot be written, or is there and not ours.
    """
    refuse_foreign_file(Path(folder) / "quarantine.jsonl", is_records("source"))
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return (Path(folder) / "quarantine.jsonl").open("w", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror})", fix="give another folder with --out"
        ) from error
