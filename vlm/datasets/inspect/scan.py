"""One ordered pass over any dataset, in chunks that loader workers can share."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError
from vlm.common.types import Example, Sample
from vlm.datasets.base import record_count, records_in_order
from vlm.datasets.loading.sampler import Ref
from vlm.datasets.loading.sources import Source, build_source
from vlm.processors.processor import Processor

if TYPE_CHECKING:
    from vlm.config.api import Config, DatasetEntry

RECORDS_PER_JOB = 64
"""Records that a worker takes at a time."""

Step = Callable[[int], None]
"""Called with the number of records just done."""


@dataclass
class Opened:
    """A dataset of a configuration, or why it cannot be opened.

    ``questions``: records may have no answer; ``trained``: it is one of ``datasets:``.
    """

    name: str
    entry: DatasetEntry
    source: Source | None
    error: str = ""
    questions: bool = False
    trained: bool = False

    @property
    def size(self) -> int | None:
        """Number of records, if known without reading them."""
        return record_count(self.source.dataset) if self.source else 0


def sections(cfg: Config) -> dict[str, tuple[str, DatasetEntry]]:
    """Section and entry of all datasets by name; a name used twice gets its section as a prefix."""
    result: dict[str, tuple[str, DatasetEntry]] = {}
    for section in ("datasets", "valid_datasets", "evaluation_datasets"):
        for name, entry in getattr(cfg, section).items():
            result[name if name not in result else f"{section.split('_')[0]}_{name}"] = (section, entry)
    return result


def open_datasets(entries: Mapping[str, tuple[str, DatasetEntry]], image_size: int) -> list[Opened]:
    """Every dataset, opened; one that cannot be opened holds the reason and does not stop the others."""
    result = []
    source: Source | None
    for name, (section, entry) in entries.items():
        split, questions = "train" if section == "datasets" else "eval", section == "evaluation_datasets"
        try:
            source, error = build_source(name, entry, image_size, split), ""
        except UserError as fault:
            source, error = None, str(fault)
        result.append(Opened(name, entry, source, error, questions, section == "datasets"))
    return result


def encode(processor: Processor, sample: Sample, rng: random.Random, questions: bool) -> Example:
    """The training example of a sample; with ``questions``, the prompt of one that has no answer.

    Raises DataError, PromptError: the sample cannot be used.
    """
    if questions and sample.messages and sample.messages[-1].role == "user":
        return replace(processor.encode_chat(sample.messages), id=sample.id, source=sample.source)
    return processor.encode_train(sample, rng)


def references(dataset: Any, limit: int | None = None, seed: int | None = None) -> Iterator[Ref]:
    """References to the records of a dataset, as stored or, with a seed, in random order."""
    return (Ref(0, index, raw) for index, raw in records_in_order(dataset, limit, seed))


def chunks(refs: Iterator[Ref], size: int = RECORDS_PER_JOB) -> Iterator[tuple[Ref, ...]]:
    """``refs`` in tuples of ``size``; the last may be shorter."""
    while chunk := tuple(islice(refs, size)):
        yield chunk


@contextmanager
def progress(text: str, total: int | None) -> Iterator[Step]:
    """A progress bar on stderr if it is a terminal (a count if ``total`` is not known)."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda count: bar.advance(task, count)
