"""What fills the queue and which cells a trial stands for; of a grid each is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from vlm.common.errors import ConfigError, unknown
from vlm.runners.study.collect import result_of
from vlm.runners.study.running.journal import CELL, DONE, Journal, fill, in_turn

if TYPE_CHECKING:
    from optuna.trial import Trial

    from vlm.runners.study.cells import Cell, StageRun, Study
    from vlm.runners.study.results import CellResult
    from vlm.runners.study.running.work import Work

Prune = Callable[["StageRun"], bool]
TAIL = 10
"""The final training loss is the mean over the last tenth of the steps."""


class Source(Protocol):
    """Fills the journal, and says what its trials are."""

    name: str
    total: int

    def journal(self, number: int) -> Journal:
        """The journal as worker ``number`` opens it."""

    def fill(self, retry: bool) -> int:
        """Let what is missing wait; returns the cells that are done."""

    def knows(self, cell: str) -> bool:
        """Whether a trial of this cell is one of the study."""

    def cells(self, journal: Journal, trial: Trial) -> Sequence[Cell]:
        """The cells of a trial; none: it was told already. Raises UserError: they do not check."""

    def pruning(self, journal: Journal, trial: Trial, cell: Cell) -> Prune | None:
        """What is asked while the last run of a trial's cell trains; None: nothing."""


class Grid:
    """Every cell of a list is a trial."""

    def __init__(self, work: Work, cells: Sequence[Cell], name: str) -> None:
        self.work, self.name = work, name
        self.known = {cell.hash: cell for cell in cells}
        self.total = len(self.known)  # labels that change nothing make cells that are the same

    def journal(self, number: int) -> Journal:
        """The list of trials called ``name``."""
        return Journal(self.work.folder, self.name)

    def fill(self, retry: bool) -> int:
        """Let the cells wait that are not done."""
        todo = [cell for cell in self.known.values() if not self.work.is_done(cell)]
        if todo:
            fill(self.journal(0), [(cell.hash, cell.levels) for cell in ordered(todo)], retry)
        return len(self.known) - len(todo)

    def knows(self, cell: str) -> bool:
        """Whether the list has this cell; others are of another version of the study."""
        return cell in self.known

    def cells(self, journal: Journal, trial: Trial) -> Sequence[Cell]:
        """The one cell of a trial, unless it is done."""
        cell = self.known[trial.user_attrs[CELL]]
        if self.work.is_done(cell):
            journal.tell(trial, DONE)
            return []
        return [cell]

    def pruning(self, journal: Journal, trial: Trial, cell: Cell) -> Prune | None:
        """A grid is run as a whole."""
        return None


def ordered(cells: Sequence[Cell]) -> list[Cell]:
    """The order of the queue: cells that share their first run are apart, so that workers rarely wait for it."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.runs[0].hash, []).append(cell)
    return in_turn(list(groups.values()))


def value_of(study: Study, cells: Sequence[Cell], work: Work) -> float | None:
    """The mean score of cells as a number of which higher is better; None: one of them has no score."""
    found = [score_of(study, result_of(study, cell, work.asked, {})) for cell in cells]
    known = [value for value in found if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known and len(known) == len(found) else None


def score_of(study: Study, result: CellResult) -> float | None:
    """What the study's table is ordered by, turned so that higher is better.

    Raises ConfigError: the study names a score that a cell with scores does not have.
    """
    named, known = study.file.score, []
    for (dataset, image, label), metric in result.scores.items():
        known += [f"{dataset}/{label}"] if image == "right" else []
        if image == "right" and named in ("", known[-1]):
            value = metric.value()
            return -value if value is not None and metric.better == "lower" else value
    if known and named != "loss":
        raise ConfigError(f"{study.source}: {unknown('score', named, [*known, 'loss'])}")
    losses = [value for _, value in result.validation if math.isfinite(value)]
    if losses:
        return -losses[-1]
    losses = [value for _, value in result.loss if math.isfinite(value)]
    last = losses[-max(1, len(losses) // TAIL) :]
    return -math.fsum(last) / len(last) if last else None
