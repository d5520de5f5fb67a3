"""One cell: its runs one after another, each in a process of its own, then the questions to its model."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.common.owned import replace_text
from vlm.common.paths import make_folder
from vlm.config.tree import to_yaml
from vlm.runners.study.folder import config_file, failure_file, lock_file, log_file
from vlm.runners.study.running.asking import Asking, missing
from vlm.runners.study.running.child import Job
from vlm.runners.study.running.journal import DONE, FAILED, PRUNED, STOPPED
from vlm.runners.study.running.locks import FileLock
from vlm.runners.study.running.marks import Done, read_done, read_failure, write_done, write_failure

if TYPE_CHECKING:
    from vlm.runners.study.cells import Cell, StageRun, Study

Execute = Callable[[Job, FileLock, Callable[[], int]], int]
"""Does a job, asking now and then whether to stop; see :class:`vlm.runners.study.running.child.Children`."""
MOST = 2000
"""Characters of a message of a failed run."""
TAIL = 1 << 16
"""Bytes at the end of a log in which the reason of a failure is looked for."""
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b.*")


@dataclass(frozen=True)
class Outcome:
    """How the work on a cell ended: one of DONE, FAILED, STOPPED, PRUNED, and why it failed."""

    ended: str
    message: str = ""


@dataclass(eq=False)
class Work:
    """What all workers of this process share.

    Attributes:
        study: whose cells they train.
        asked: questions to each cell's model.
        execute: does a job.
        threads: of each process that trains.
        environments: variables of each worker's children, by number of the worker.
        stopping: set once the user wants to stop.
        ending: set once the user does not want to wait for it.
        started: time (seconds since 1970) since when a failed run counts as tried.
    """

    study: Study
    asked: Sequence[Asking]
    execute: Execute
    threads: int = 1
    environments: Sequence[Mapping[str, str]] = ()
    stopping: threading.Event = field(default_factory=threading.Event)
    ending: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.time)

    @property
    def folder(self) -> Path:
        """Of the study."""
        return self.study.folder

    def is_done(self, cell: Cell) -> bool:
        """Whether nothing is left to do for a cell."""
        last = self._done(cell.hash)
        if last is None:
            return False
        return last.status == "pruned" or not missing(self.folder, cell.hash, self.asked)

    def _done(self, run: str) -> Done | None:
        """How a run ended; what a search gave up is trained on in a grid."""
        done = read_done(self.folder, run)
        return None if done is not None and done.status == "pruned" and self.study.file.search is None else done

    def _wanted(self) -> int:
        """What the user wants of a child: 0: go on, 1: save and stop, 2: end."""
        return 2 if self.ending.is_set() else int(self.stopping.is_set())

    def do(self, cell: Cell, number: int = 0, prune: Callable[[StageRun], bool] | None = None) -> Outcome:
        """Train and ask what a cell lacks.

        Args:
            cell: which.
            number: of the worker.
            prune: asked now and then while the cell's last run trains; once it is true the cell is given up.
        """
        for run in cell.runs:
            last = run is cell.runs[-1]
            lock = FileLock(lock_file(self.folder, run.hash))
            if not lock.wait(self.stopping.is_set):  # another cell's worker trains the stage that both share
                return Outcome(STOPPED)
            try:
                outcome = self._run(run, lock, number, self.asked if last else (), prune if last else None)
            finally:
                lock.release()
            if outcome.ended != DONE:
                return outcome
        return Outcome(DONE)

    def _run(
        self,
        run: StageRun,
        lock: FileLock,
        number: int,
        asked: Sequence[Asking],
        prune: Callable[[StageRun], bool] | None,
    ) -> Outcome:
        """One run, whose lock is held."""
        done = self._done(run.hash)
        if done is not None and done.status == "pruned":
            return Outcome(PRUNED)
        todo = missing(self.folder, run.hash, asked)
        if done is not None and not todo:
            return Outcome(DONE)
        failure = read_failure(self.folder, run.hash)
        if failure is not None and failure.time >= self.started:
            return Outcome(FAILED, failure.message)
        failure_file(self.folder, run.hash).unlink(missing_ok=True)
        job = self._prepare(run, number, todo)
        log = log_file(self.folder, run.hash)
        before = log.stat().st_size if log.is_file() else 0
        pruned = threading.Event()

        def stop() -> int:
            if prune is not None and not self.stopping.is_set() and prune(run):
                pruned.set()
            return max(self._wanted(), int(pruned.is_set()))

        code = self.execute(job, lock, stop)
        done = read_done(self.folder, run.hash)
        if done is not None and not missing(self.folder, run.hash, asked):
            return Outcome(DONE)
        if pruned.is_set() and done is None and not self.ending.is_set():
            write_done(self.folder, run.hash, Done("pruned", 0))
            return Outcome(PRUNED)
        if self.stopping.is_set():
            return Outcome(STOPPED)
        message = reason_of(log, before, code)
        message = message if done is None else f"trained, but not evaluated: {message}"
        write_failure(self.folder, run.hash, message)
        return Outcome(FAILED, message)

    def _prepare(self, run: StageRun, number: int, asked: Sequence[Asking]) -> Job:
        """Write what the child reads."""
        file = config_file(self.folder, run.hash)
        make_folder(file.parent)
        replace_text(file, to_yaml(run.config.resolved))
        environment = self.environments[number] if self.environments else {}
        settings = self.study.file
        return Job(
            self.folder,
            run.hash,
            tuple(asked),
            self.threads,
            settings.processes,
            tuple(settings.plugins),
            tuple(environment.items()),
        )


def reason_of(log: Path, start: int, code: int) -> str:
    """Why a process ended with ``code``, from what it printed after position ``start`` of its log."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = next((k for k, line in enumerate(lines) if line.startswith("error: ")), None)
    if told is not None:  # the first: others may say that they stop because of it
        more = takewhile(lambda line: line.startswith(" "), lines[told + 1 :])
        return "\n".join([lines[told].removeprefix("error: "), *more])[:MOST]
    raised = [line for line in lines if _RAISED.match(line)]
    if code < 0:
        name = {int(known): known.name for known in signal.Signals}.get(-code, f"signal {-code}")
        killed = f"its process was ended by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")
        return f"{killed} (see {log})"
    last = raised[-1] if raised else next((line for line in lines[::-1] if line.strip()), "no message")
    return f"{last} (exit code {code}; see {log})"[:MOST]
