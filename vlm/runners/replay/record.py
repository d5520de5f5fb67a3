"""What a replay finds, as plain values for JSON and for the page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ROUNDING = 0.01
"""Share of a logged number by which another order of sums, device or version may change it."""


@dataclass(frozen=True)
class Token:
    """A token of a sample, or a whole medium."""

    text: str
    trained: bool = False
    medium: bool = False
    loss: float | None = None  # None: nothing predicts it


@dataclass(frozen=True)
class SampleLook:
    """A sample of the step."""

    name: str
    dataset: str
    record: str  # pass and index in the dataset
    media: Sequence[str]  # files or sizes
    loss_sum: float
    targets: int  # trained tokens
    tokens: Sequence[Token]
    images: Sequence[tuple[str, Sequence[str]]] = ()  # CSS class and ``data:`` addresses, for the page only

    @property
    def loss(self) -> float:
        """Mean over the trained tokens."""
        return self.loss_sum / self.targets if self.targets else math.nan


@dataclass(frozen=True)
class BatchLook:
    """A micro-batch of the step."""

    rank: int
    number: int  # from 1, of its process
    loss_sum: float
    samples: Sequence[SampleLook]

    @property
    def targets(self) -> int:
        """Trained tokens."""
        return sum(sample.targets for sample in self.samples)

    @property
    def loss(self) -> float:
        """Mean over the trained tokens."""
        return self.loss_sum / self.targets if self.targets else math.nan


@dataclass(frozen=True)
class Number:
    """A number of the log, and what the replay computed."""

    logged: float | None  # None: the step is not in the log
    replayed: float

    @property
    def equal(self) -> bool | None:
        """Whether both are the same number, bit for bit; None: nothing to compare with."""
        return None if self.logged is None else self.logged == self.replayed

    @property
    def difference(self) -> float | None:
        """Replayed minus logged."""
        return None if self.logged is None else self.replayed - self.logged

    @property
    def is_far(self) -> bool:
        """Whether they differ by more than :data:`ROUNDING`."""
        return self.logged is not None and abs(self.replayed - self.logged) > ROUNDING * abs(self.logged)

    def __str__(self) -> str:
        if self.logged is None:
            return f"{self.replayed!r} (not in the log)"
        if self.equal:
            return f"{self.replayed!r}, equal to the log bit for bit"
        change = self.replayed - self.logged
        relative = abs(change / self.logged) if self.logged else math.inf
        return f"{self.replayed!r}, in the log {self.logged!r}: difference {change:.3g} (relative {relative:.2g})"


@dataclass(frozen=True)
class Replay:
    """A step again."""

    run: str
    step: int
    start: str  # the checkpoint, or that it was the beginning
    trained: int  # steps trained again to get there
    exact: bool  # whether the weights are those of the step
    processes: int
    rank: int | None  # None: all are shown
    loss: Number
    loss_sum: float  # of all tokens of the step, before the mean
    grad_norm: Number
    parts: dict[str, float]  # norm of the gradient of each part
    batches: Sequence[BatchLook]
    counts: dict[str, int] = field(default_factory=dict)  # samples and trained tokens of the whole step
    reasons: Sequence[str] = ()  # why numbers may differ from those of the run

    @property
    def samples(self) -> list[tuple[BatchLook, SampleLook]]:
        """All that are shown, the largest mean loss first."""
        found = [(batch, sample) for batch in self.batches for sample in batch.samples]
        return sorted(found, key=lambda pair: -math.inf if math.isnan(pair[1].loss) else -pair[1].loss)

    def to_json(self) -> str:
        """All but the images; numbers that are not finite are null."""
        return json.dumps(_plain(self._values()), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def _values(self) -> dict[str, Any]:
        head = {name: vars(self)[name] for name in ("run", "step", "start", "trained", "exact", "processes", "rank")}
        numbers = {
            name: {**vars(number), "equal": number.equal, "difference": number.difference}
            for name, number in (("loss", self.loss), ("grad_norm", self.grad_norm))
        }
        more = {"gradient_norms": self.parts, "counts": self.counts, "reasons": list(self.reasons)}
        return {**head, **numbers, **more, "micro_batches": [_batch(b) for b in self.batches]}


def _batch(batch: BatchLook) -> dict[str, Any]:
    head = {"rank": batch.rank, "number": batch.number, "loss": batch.loss, "targets": batch.targets}
    return {**head, "samples": [_sample(s) for s in batch.samples]}


def _sample(sample: SampleLook) -> dict[str, Any]:
    names = {"id": sample.name, "dataset": sample.dataset, "record": sample.record, "media": list(sample.media)}
    tokens = [{"text": t.text, **({"loss": t.loss} if t.trained else {})} for t in sample.tokens]
    return {**names, "loss": sample.loss, "targets": sample.targets, "tokens": tokens}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
