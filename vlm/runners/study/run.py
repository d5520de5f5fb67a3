"""``run_study``: whatever of a study is missing is trained and asked, by workers that share one queue."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm.common.dist import split_accelerators
from vlm.common.errors import UserError
from vlm.common.logging import say
from vlm.common.paths import make_folder
from vlm.common.processes.threads import COUNT, usable_cores
from vlm.common.text import counted
from vlm.runners.study.collect import cell_state
from vlm.runners.study.running.asking import asked_of
from vlm.runners.study.running.cells_file import remember
from vlm.runners.study.running.child import Children
from vlm.runners.study.running.journal import DONE, FAILED, STOPPED, Journal, Worker
from vlm.runners.study.running.progress import Progress, name_of
from vlm.runners.study.running.search import Search, Space
from vlm.runners.study.running.source import Grid, Source, value_of
from vlm.runners.study.running.work import Execute, Outcome, Work
from vlm.runners.train.signals import StopSignals

if TYPE_CHECKING:
    from optuna.trial import Trial

    from vlm.runners.study.cells import Cell, Study

QUEUE = "cells"
"""Name of the list of trials in the journal that has all cells of a grid."""
WAIT = 0.2
"""Seconds between two looks at the workers."""


@dataclass
class Ended:
    """What a command did.

    Attributes:
        done: cells that it finished.
        failed: cell and message, whoever began it.
        refused: what is wrong with combinations of a search that do not check.
        elsewhere: cells that other commands are working on.
        stopped: whether the user stopped it, by which signal; 0: not.
    """

    done: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    elsewhere: int = 0
    stopped: int = 0

    @property
    def exit_code(self) -> int:
        """0: nothing failed, 1: cells failed, 128 + signal: stopped."""
        return 128 + self.stopped if self.stopped else int(bool(self.failed or self.refused))


def run_study(
    study: Study,
    *,
    space: Space | None = None,
    workers: int = 1,
    only: Sequence[str] = (),
    retry: bool = True,
    execute: Execute | None = None,
    stopping: threading.Event | None = None,
    show: Callable[[str], None] = say,
) -> Ended:
    """Train and ask what is missing of a study, ``workers`` cells at a time.

    The same call goes on after a crash and after cells were added, and may run on several machines that share the
    study's folder: each cell is done once.

    Args:
        study: a checked study.
        space: with ``search``, what is chosen from; see :func:`vlm.runners.study.running.search.space_of`.
        workers: cells that are worked on at a time; the cores are divided among them.
        only: names or hashes of cells; empty: all.
        retry: whether cells that failed before are begun again.
        execute: does a job, by default in a process of its own.
        stopping: may be set by another thread, like a first Ctrl-C.
        show: takes lines for the user.

    Raises:
        UserError: no such cell, optuna is missing, or the folder or the journal cannot be used.
    """
    work = Work(study, asked_of(study), execute or Children(), threads_of(workers * study.file.processes))
    work.stopping = stopping or work.stopping
    work.environments = split_accelerators(workers, study.file.processes)
    source = source_of(work, space, only)
    done = source.fill(retry)
    progress = Progress(study, source.total, done, workers, show)
    left = f"{source.total - done} to do{trained(work, source)}"
    show(f"{study.folder}: {counted(source.total, 'cell')}, {done} done, {left}")
    if done >= source.total:
        return Ended()
    team = [Hand(number, work, source, progress) for number in range(min(workers, source.total - done))]
    stopped = supervise(team, work, show)
    failed, elsewhere = failures(work, source, progress), len(source.journal(0).running())
    ended = Ended(progress.done, failed, progress.refusals, elsewhere, stopped)
    show_end(study, ended, show)
    return ended


def prepared(study: Study, space: Space | None, *, retry: bool) -> tuple[Source, int]:
    """The filled queue, for workers that are started elsewhere, and how many cells are done. Raises as run_study."""
    source = source_of(Work(study, asked_of(study), Children()), space, ())
    return source, source.fill(retry)


def source_of(work: Work, space: Space | None, only: Sequence[str]) -> Source:
    """What fills the queue. Raises UserError: no such cell, or ``only`` for a search."""
    study = work.study
    make_folder(study.folder)
    if study.file.search is not None:
        if only or space is None:
            raise UserError("--only names cells of a grid, but this study searches", fix="leave it out")
        return Search(work, space)
    cells = chosen(study, only)
    remember(study.folder, cells)
    name = QUEUE if not only else "-".join([QUEUE, *sorted(cell.hash for cell in cells)])[:200]
    return Grid(work, cells, name)


def trained(work: Work, source: Source) -> str:
    """How many cells of a grid are only asked, in words for the first line; empty: none."""
    cells = source.known.values() if isinstance(source, Grid) else ()
    count = sum(cell_state(work.folder, cell, work.asked)[0] == "trained" for cell in cells)
    return f" ({count} trained, with questions left)" if count else ""


def failures(work: Work, source: Source, progress: Progress) -> list[tuple[Cell, str]]:
    """Cells that failed and their messages, whoever began them; of a search those that this command began."""
    if not isinstance(source, Grid):
        return progress.failed
    states = [(cell, *cell_state(work.folder, cell, work.asked)) for cell in source.known.values()]
    return [(cell, message) for cell, state, message in states if state == "failed"]


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


class Hand(threading.Thread):
    """A worker: takes cells until none waits."""

    def __init__(self, number: int, work: Work, source: Source, progress: Progress) -> None:
        super().__init__(name=f"worker {number}", daemon=True)
        self.number, self.work, self.source, self.progress = number, work, source, progress
        self.fault: BaseException | None = None

    def run(self) -> None:
        """Work; what goes wrong outside of the runs is kept for :func:`supervise`."""
        worker = Worker(self.work.folder)
        try:
            self._work(self.source.journal(self.number), worker)
        except UserError as error:
            self.fault = error
        except OSError as error:  # a full disk, a folder that is gone
            place, why = error.filename or self.work.folder, error.strerror or error
            self.fault = UserError(f"{place}: {why}", fix="mend that; the same command goes on")
            self.fault.__cause__ = error
        finally:
            self.fault = self.fault or sys.exc_info()[1]
            worker.close()

    def _work(self, journal: Journal, worker: Worker) -> None:
        while not self.work.stopping.is_set():
            trial = journal.take(worker, self.source.knows)
            if trial is None:
                with journal.guarded():
                    if journal.revive():
                        continue
                return
            try:
                cells = self.source.cells(journal, trial)
            except UserError as error:
                self.progress.refused(trial.params, error)
                journal.tell(trial, FAILED)
                continue
            if cells:
                outcome = self._all(journal, trial, cells)
                valued = outcome.ended == DONE and self.work.study.file.search is not None
                journal.tell(trial, outcome.ended, value_of(self.work.study, cells, self.work) if valued else None)

    def _all(self, journal: Journal, trial: Trial, cells: Sequence[Cell]) -> Outcome:
        """The cells of a trial, up to the first that is not done."""
        outcome = Outcome(DONE)
        for cell in cells:
            if outcome.ended == DONE and not self.work.is_done(cell):
                since = self.progress.begins(cell)
                try:
                    outcome = self.work.do(cell, self.number, self.source.pruning(journal, trial, cell))
                except UserError as error:
                    outcome = Outcome(FAILED, str(error))
                self.progress.ends(cell, outcome, since)
            elif outcome.ended != STOPPED:
                self.progress.skips()
        return outcome


def supervise(team: Sequence[Hand], work: Work, show: Callable[[str], None]) -> int:
    """Wait for the workers; the signal by which the user stopped them, or 0.

    The first signal lets runs save and stop, a second Ctrl-C ends their processes at once. Raises what a worker could
    not go on with.
    """
    with StopSignals() as signals:
        for hand in team:
            hand.start()
        try:
            while any(hand.is_alive() for hand in team):
                for hand in team:
                    hand.join(WAIT)
                if signals.requested and not work.stopping.is_set():
                    show("stopping: runs are saved after their present step; a second Ctrl-C ends them at once")
                    work.stopping.set()
        except KeyboardInterrupt:
            work.ending.set()
            for hand in team:
                hand.join()
    for hand in team:
        if hand.fault is not None:
            raise hand.fault
    return int(signals.received or 0)


def show_end(study: Study, ended: Ended, show: Callable[[str], None]) -> None:
    """The last lines: what failed, and what to do."""
    for cell, message in ended.failed:
        show(f"failed: {name_of(study, cell)} ({cell.hash}): {message}")
    for text in ended.refused:
        show(f"cannot be built: {text}")
    if ended.failed:
        show(f"{counted(len(ended.failed), 'cell')} failed; the same command begins them again")
    if ended.elsewhere:
        show(f"other commands are working on {counted(ended.elsewhere, 'cell')}")
    if ended.stopped:
        show("stopped; the same command goes on")
