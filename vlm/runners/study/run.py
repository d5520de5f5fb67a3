"""``run_study``: whatever of a study is missing is trained and asked, by workers that share one queue."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm.common.errors import UserError
from vlm.common.logging import say
from vlm.common.paths import make_folder
from vlm.common.processes.threads import COUNT, usable_cores
from vlm.runners.study.running.asking import asked_of
from vlm.runners.study.running.cells_file import remember
from vlm.runners.study.running.child import Children
from vlm.runners.study.running.journal import CELL, DONE, FAILED, Journal, Worker, fill, in_turn
from vlm.runners.study.running.progress import Progress, name_of
from vlm.runners.study.running.work import Execute, Outcome, Work
from vlm.runners.train.signals import StopSignals

if TYPE_CHECKING:
    from vlm.runners.study.cells import Cell, Study

log = logging.getLogger(__name__)

QUEUE = "cells"
"""Name of the list of trials in the journal that has all cells of a grid."""
WAIT = 0.2
"""Seconds between two looks at the workers."""


@dataclass
class Ended:
    """What a command did.

    Attributes:
        done: cells that it finished.
        failed: cell and message.
        elsewhere: cells that other commands are working on.
        stopped: whether the user stopped it, by which signal; 0: not.
    """

    done: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    elsewhere: int = 0
    stopped: int = 0

    @property
    def exit_code(self) -> int:
        """0: nothing failed, 1: cells failed, 128 + signal: stopped."""
        return 128 + self.stopped if self.stopped else int(bool(self.failed))


def run_study(
    study: Study,
    *,
    workers: int = 1,
    only: Sequence[str] = (),
    retry: bool = True,
    execute: Execute | None = None,
    show: Callable[[str], None] = say,
) -> Ended:
    """Train and ask what is missing of a study, ``workers`` cells at a time.

    The same call goes on after a crash and after cells were added, and may run on several machines that share the
    study's folder: each cell is done once.

    Args:
        study: a checked study.
        workers: cells that are worked on at a time; the cores are divided among them.
        only: names or hashes of cells; empty: all.
        retry: whether cells that failed before are begun again.
        execute: does a job, by default in a process of its own.
        show: takes lines for the user.

    Raises:
        UserError: no such cell, optuna is missing, or the folder or the journal cannot be used.
    """
    make_folder(study.folder)
    cells = chosen(study, only)
    work = Work(study, asked_of(study), execute or Children(), threads_of(workers * study.file.processes))
    todo = [cell for cell in cells if not work.is_done(cell)]
    remember(study.folder, cells)
    progress = Progress(study, len(cells), len(cells) - len(todo), workers, show)
    show(f"{study.folder}: {len(cells)} cells, {progress.before} done, {len(todo)} to do")
    if not todo:
        return Ended()
    name = QUEUE if not only else "-".join([QUEUE, *sorted(cell.hash for cell in cells)])[:200]
    journal = Journal(study.folder, name)
    fill(journal, [(cell.hash, cell.levels) for cell in ordered(todo)], retry)
    known = {cell.hash: cell for cell in cells}
    team = [Hand(number, work, known, name, progress) for number in range(min(workers, len(todo)))]
    stopped = supervise(team, work, show)
    ended = Ended(progress.done, progress.failed, len(journal.running()), stopped)
    show_end(study, ended, show)
    return ended


def threads_of(processes: int) -> int:
    """Threads of each of so many processes that train: what the user sets, else its share of the cores."""
    given = next((os.environ[name] for name in COUNT if os.environ.get(name, "").isdigit()), None)
    return max(1, usable_cores() // processes if given is None else int(given))


def chosen(study: Study, only: Sequence[str]) -> list[Cell]:
    """The cells that the user names, in the study's order.

    Raises UserError: a name that no cell has.
    """
    if not only:
        return list(study.cells)
    found: list[Cell] = []
    for word in only:
        names = [(cell, (study.named(cell.key), name_of(study, cell))) for cell in study.cells]
        mine = [cell for cell, called in names if word in called or (len(word) >= 4 and cell.hash.startswith(word))]
        if not mine:
            some = "; ".join(dict.fromkeys(called[1] for _, called in names[:8]))
            raise UserError(f"--only {word!r}: no cell is called so", fix=f"a hash, or a name such as: {some}")
        found += mine
    return [cell for cell in study.cells if cell in found]


def ordered(cells: Sequence[Cell]) -> list[Cell]:
    """The order of the queue: cells that share their first run are apart, so that workers rarely wait for it."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.runs[0].hash, []).append(cell)
    return in_turn(list(groups.values()))


class Hand(threading.Thread):
    """A worker: takes cells until none waits."""

    def __init__(self, number: int, work: Work, cells: dict[str, Cell], name: str, progress: Progress) -> None:
        super().__init__(name=f"worker {number}", daemon=True)
        self.number, self.work, self.cells, self.queue, self.progress = number, work, cells, name, progress
        self.fault: BaseException | None = None

    def run(self) -> None:
        """Work; what goes wrong outside of the runs is kept for :func:`supervise`."""
        worker = Worker(self.work.folder)
        try:
            self._work(Journal(self.work.folder, self.queue), worker)
        except (UserError, OSError) as error:
            self.fault = error
        finally:
            worker.close()

    def _work(self, journal: Journal, worker: Worker) -> None:
        while not self.work.stopping.is_set():
            trial = journal.take(worker)
            if trial is None:
                with journal.guarded():
                    if journal.revive():
                        continue
                return
            cell = self.cells.get(trial.user_attrs.get(CELL, ""))
            if cell is None:  # of an earlier version of the study
                journal.tell(trial, FAILED)
                continue
            if self.work.is_done(cell):
                journal.tell(trial, DONE)
                continue
            since = self.progress.begins(cell)
            outcome = self._do(cell)
            journal.tell(trial, outcome.ended)
            self.progress.ends(cell, outcome, since)

    def _do(self, cell: Cell) -> Outcome:
        try:
            return self.work.do(cell, self.number)
        except UserError as error:
            return Outcome(FAILED, str(error))


def supervise(team: Sequence[Hand], work: Work, show: Callable[[str], None]) -> int:
    """Wait for the workers; the signal by which the user stopped them, or 0.

    The first signal lets runs save and stop, the second one has its usual effect; what still runs then saves and stops
    by itself. Raises what a worker could not go on with.
    """
    with StopSignals() as signals:
        for hand in team:
            hand.start()
        while any(hand.is_alive() for hand in team):
            for hand in team:
                hand.join(WAIT)
            if signals.requested and not work.stopping.is_set():
                show("stopping: runs are saved after their present step")
                work.stopping.set()
    for hand in team:
        if hand.fault is not None:
            raise hand.fault
    return int(signals.received or 0)


def show_end(study: Study, ended: Ended, show: Callable[[str], None]) -> None:
    """The last lines: what failed, and what to do."""
    for cell, message in ended.failed:
        show(f"failed: {name_of(study, cell)} ({cell.hash}): {message}")
    if ended.failed:
        show(f"{len(ended.failed)} cells failed; the same command begins them again")
    if ended.elsewhere:
        show(f"{ended.elsewhere} cells are worked on by other commands")
    if ended.stopped:
        show("stopped; the same command goes on")
