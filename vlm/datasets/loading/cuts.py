"""Samples that a limit on their length has cut: counted by dataset, and an error when there are too many."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from vlm.common.errors import DataError
from vlm.common.types import Cut
from vlm.datasets.loading.batching import BatchRows
from vlm.datasets.loading.quarantine import too_many
from vlm.processors.processor import Processor

log = logging.getLogger(__name__)

CUT_BY_CONTEXT = 0.1
"""Share of a dataset's samples that the LLM's context may cut, unless ``run.max_cut_share`` says otherwise."""


@dataclass
class CutCounts:
    """Samples of a dataset, those of them that were cut, and what these lost (see :class:`~vlm.common.types.Cut`)."""

    samples: int = 0
    cut: int = 0
    answers: int = 0
    turns: int = 0
    images: int = 0
    questions: int = 0
    limit: str = ""

    def add(self, cut: Cut | None) -> None:
        """Count a sample."""
        self.samples += 1
        if cut is not None:
            self.merge(CutCounts(0, 1, cut.answers, cut.turns, cut.images, cut.questions, cut.limit))

    def merge(self, other: CutCounts) -> None:
        """Add the counts of other samples."""
        for name in ("samples", "cut", "answers", "turns", "images", "questions"):
            setattr(self, name, vars(self)[name] + vars(other)[name])
        self.limit = self.limit or other.limit

    def as_dict(self) -> dict[str, int | str]:
        """All counts by name."""
        return asdict(self)

    def as_report(self) -> dict[str, int]:
        """The counts of what was cut, by the names of a :data:`~vlm.datasets.loading.data_stats.DataReport`."""
        lost = {f"cut_{k}": v for k, v in vars(self).items() if k in ("answers", "turns", "images", "questions")}
        return {"cut": self.cut, **lost}

    def __str__(self) -> str:
        lost = Cut(self.answers, self.turns, self.images, self.questions, self.limit)
        return f"{self.cut:,} of {self.samples:,} samples ({self.cut / max(self.samples, 1):.1%}): {lost}"

    def verdict(self, name: str, max_share: float) -> str:
        """Why a run on the dataset would end; empty if it would not."""
        if not too_many(self.cut, self.samples, max_share):
            return ""
        return f"dataset {name}: cut {self}, allowed are {max_share:.1%} (run.max_cut_share)"


def cut_bound(max_share: float | None, processor: Processor | None) -> float:
    """Share of cut samples that ends a run: what is asked for, else none where the configuration states a limit."""
    if max_share is not None:
        return max_share
    return 1.0 if processor is None or processor.has_limit else CUT_BY_CONTEXT


def report_cuts(rows: BatchRows, counts: Mapping[str, CutCounts], names: Sequence[str], max_share: float) -> None:
    """Log the first cut sample of every dataset; ``counts`` include the rows.

    Raises DataError: more samples of a dataset than ``max_share`` explains were cut.
    """
    cut = [sample for row in rows for sample in row if sample.example.cut is not None]
    for name in dict.fromkeys(names[sample.key[0]] for sample in cut):
        own = [sample.example for sample in cut if names[sample.key[0]] == name]
        if counts[name].cut == len(own):
            log.warning("%s: sample %s is cut: %s; all cut samples are counted", name, own[0].id, own[0].cut)
        if found := counts[name].verdict(name, max_share):
            raise DataError(found, fix="raise the limit, shorten the samples, or raise run.max_cut_share")
