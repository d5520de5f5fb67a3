"""What is known of each cell: how far it is, its losses, its scores, its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vlm.runners.study.cells import Cell
    from vlm.tasks.scoring.statistics import Metric

State = Literal["missing", "running", "interrupted", "trained", "failed", "pruned", "done"]


@dataclass(frozen=True)
class Cost:
    """What a cell took, its stages together; a shared first stage counts in full for every cell.

    Attributes:
        parameters, trained: of the last stage's model.
        flops: counted while it trained, of all processes.
        seconds: of training.
        samples, tokens: that were trained on; tokens are positions without padding.
        memory: bytes at the peak of one process, where it was measured.
    """

    parameters: int = 0
    trained: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    memory: int = 0


@dataclass(frozen=True)
class CellResult:
    """One cell as its folders say.

    Attributes:
        cell: whose result it is.
        state: ``trained``: its evaluation is missing; ``done``: nothing is.
        message: why it failed.
        cost: of what was trained so far.
        loss: of the last stage: (step, training loss) of the log.
        validation: (step, validation loss), where the run has one.
        scores: (dataset, control, label) -> the metric with its rows, which are per question.
        answers: dataset -> file of answers with the right images.
    """

    cell: Cell
    state: State
    message: str = ""
    cost: Cost = field(default_factory=Cost)
    loss: Sequence[tuple[float, float]] = ()
    validation: Sequence[tuple[float, float]] = ()
    scores: dict[tuple[str, str, str], Metric] = field(default_factory=dict)
    answers: dict[str, Path] = field(default_factory=dict)
