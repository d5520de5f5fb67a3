"""What the user sees of a study that runs: a line for each cell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm.runners.study.running.journal import DONE, FAILED, PRUNED, STOPPED
from vlm.runners.train.trackers import duration

if TYPE_CHECKING:
    from vlm.common.errors import UserError
    from vlm.runners.study.cells import Cell, Study
    from vlm.runners.study.running.work import Outcome


def name_of(study: Study, cell: Cell) -> str:
    """A cell in a few words."""
    seeds = len(study.file.seeds) > 1
    return study.named(cell.key) + (f", seed {cell.seed}" if seeds else "")


@dataclass(eq=False)
class Progress:
    """Counts cells and tells of each; may be called by several threads.

    Attributes:
        study: whose cells.
        total: cells of the study.
        before: of which were done before.
        workers: cells that are worked on at a time.
        show: takes the lines.
        failed: cell and message of those that failed.
        refusals: what is wrong with combinations of a search that do not check.
        done: cells that this command finished, pruned ones included.
    """

    study: Study
    total: int
    before: int
    workers: int
    show: Callable[[str], None]
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    done: int = 0

    def __post_init__(self) -> None:
        """Start the clock."""
        self._lock, self._started, self._ended = threading.Lock(), time.monotonic(), 0

    def begins(self, cell: Cell) -> float:
        """Tell that a cell is begun; the time of the clock."""
        with self._lock:
            self.show(f"{self._place()} {name_of(self.study, cell)}: begun ({cell.hash})")
        return time.monotonic()

    def ends(self, cell: Cell, outcome: Outcome, since: float) -> None:
        """Tell how a cell ended that was begun at ``since``."""
        name, took = name_of(self.study, cell), duration(time.monotonic() - since)
        with self._lock:
            self._ended += outcome.ended != STOPPED
            self.done += outcome.ended in (DONE, PRUNED)
            if outcome.ended == FAILED:
                self.failed.append((cell, outcome.message))
            first = outcome.message.partition("\n")[0]
            word = {DONE: f"done in {took}", PRUNED: f"pruned after {took}", STOPPED: "stopped; its run is saved"}
            self.show(
                f"{self._place()} {name}: {word.get(outcome.ended, f'FAILED after {took}: {first}')}{self._left()}"
            )

    def skips(self) -> None:
        """A cell is not worked on: it was done before, or its trial is given up."""
        with self._lock:
            self._ended += 1
            self.done += 1

    def refused(self, levels: Mapping[str, str], error: UserError) -> None:
        """Tell that a combination does not check."""
        with self._lock:
            self.refusals.append(f"{', '.join(levels.values())}: {error}")
            self.show(f"{self._place()} {', '.join(levels.values())}: cannot be built: {str(error).splitlines()[0]}")

    def _place(self) -> str:
        width = len(str(self.total))
        return f"[{self.before + self.done:>{width}}/{self.total}]"

    def _left(self) -> str:
        """The time that is left, by the mean of the cells so far."""
        left = self.total - self.before - self._ended
        if not self._ended or left <= 0:
            return ""
        return f"; about {duration((time.monotonic() - self._started) / self._ended * left)} left"
