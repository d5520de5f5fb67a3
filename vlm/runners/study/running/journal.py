"""The queue of a study's cells: trials that wait in Optuna's journal, which any number of processes and machines share.

Optuna gives each waiting trial to one worker. What is added: a worker holds a lock as long as it lives, so that what it
was doing when it was killed waits again; and a cell waits only once.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError, UserError
from vlm.runners.study.folder import JOURNAL, QUEUE_LOCK, WORKERS
from vlm.runners.study.running.locks import FileLock, held, is_held

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

CELL, WORKER, ENDED, LEVELS = "cell", "worker", "ended", "levels"
"""Attributes of trials."""
DONE, FAILED, STOPPED, PRUNED, REPEATED = "done", "failed", "stopped", "pruned", "repeated"
"""How a trial ended. STOPPED: it has to be given again; REPEATED: it was none, since an earlier one was the same."""


def need_optuna() -> ModuleType:
    """The package, which no longer logs what the study says itself. Raises UserError: it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError("running a study needs optuna", fix="pip install 'vlm[study]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(eq=False)
class Worker:
    """Who takes trials: a lock that is free as soon as its process has ended."""

    folder: Path
    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}")
    lock: FileLock = field(init=False)

    def __post_init__(self) -> None:
        """Take the lock, while nobody looks whose are free."""
        self.lock = FileLock(worker_lock(self.folder, self.name))
        with held(self.folder / QUEUE_LOCK):
            self.lock.acquire()

    def close(self) -> None:
        """Give the lock up: what is still this worker's waits again."""
        self.lock.release()
        self.lock.file.unlink(missing_ok=True)


def worker_lock(folder: Path, name: str) -> Path:
    """The lock of a worker."""
    return folder / WORKERS / f"{name}.lock"


class Journal:
    """One list of trials of a study's journal; every worker has an object of its own.

    Raises UserError: optuna is missing; DataError: the journal is damaged.
    """

    def __init__(
        self, folder: Path, name: str, sampler: BaseSampler | None = None, pruner: BasePruner | None = None
    ) -> None:
        optuna = need_optuna()
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        self.folder, self.file = folder, folder / JOURNAL
        self.states = optuna.trial.TrialState
        lock = JournalFileOpenLock(str(self.file))
        lock.acquire()
        try:
            mend(self.file)
        finally:
            lock.release()
        try:
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(self.file), lock_obj=lock))
            self.study = optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                sampler=sampler or optuna.samplers.RandomSampler(seed=0),
                pruner=pruner or optuna.pruners.NopPruner(),
            )
        except (ValueError, LookupError, AssertionError) as error:  # lines that are gone, or twice there
            raise damaged(self.file, repr(error)) from error

    def guarded(self) -> Any:
        """A block in which nobody else takes or adds trials."""
        return held(self.folder / QUEUE_LOCK)

    def trials(self, *states: Any) -> list[FrozenTrial]:
        """Those in one of the states (by default all), in the order of their numbers."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def waiting(self) -> list[FrozenTrial]:
        """Those that nobody took yet."""
        return self.trials(self.states.WAITING)

    def running(self) -> list[FrozenTrial]:
        """Those that a living worker has."""
        return [t for t in self.trials(self.states.RUNNING) if self._is_taken(t)]

    def _is_taken(self, trial: FrozenTrial) -> bool:
        name = trial.user_attrs.get(WORKER, "")
        return bool(name) and is_held(worker_lock(self.folder, name))

    def add(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        """Let a trial wait."""
        self.study.enqueue_trial(dict(params), user_attrs=dict(attributes))

    def take(self, worker: Worker, known: Callable[[str], bool] = lambda cell: True) -> Trial | None:
        """The next waiting trial, which is the worker's until it is told; None if none waits.

        Args:
            worker: who takes it.
            known: whether its study has a cell; those of other versions of the study go on waiting, for their workers.
        """
        with self.guarded():
            while any(known(trial.user_attrs.get(CELL, "")) for trial in self.waiting()):
                trial = self.study.ask()
                if known(trial.user_attrs.get(CELL, "")):
                    trial.set_user_attr(WORKER, worker.name)
                    return trial
                self.add({}, trial.user_attrs)
                self.tell(trial, STOPPED)
        return None

    def revive(self) -> int:
        """Let what dead workers were doing wait again; their number. To be called in :meth:`guarded`."""
        dead = [t for t in self.trials(self.states.RUNNING) if not self._is_taken(t)]
        for trial in dead:
            self._end(trial.number, self.states.FAIL)
            attributes = {k: v for k, v in trial.user_attrs.items() if k not in (WORKER, ENDED)}
            self.add({**trial.system_attrs.get("fixed_params", {}), **trial.params}, attributes)
        for file in (self.folder / WORKERS).glob("*.lock"):
            if not is_held(file):
                file.unlink(missing_ok=True)
        return len(dead)

    def tell(self, trial: Trial, ended: str, value: float | None = None) -> None:
        """How a trial ended; ``value``: of one that is done, higher is better."""
        trial.set_user_attr(ENDED, ended)
        states = {DONE: self.states.COMPLETE, PRUNED: self.states.PRUNED}
        if ended == DONE:
            self._end(trial.number, self.states.COMPLETE, 0.0 if value is None else value)
        else:
            self._end(trial.number, states.get(ended, self.states.FAIL))

    def repeat(self, trial: Trial, value: float | None) -> None:
        """A trial that is not worked on: its combination has ``value``, or None where that is not known."""
        trial.set_user_attr(ENDED, REPEATED)
        self._end(trial.number, self.states.FAIL if value is None else self.states.COMPLETE, value)

    def _end(self, number: int, state: Any, value: float | None = None) -> None:
        self.study.tell(number, value, state=state, skip_if_finished=True)


def mend(file: Path) -> None:
    """Cut off half a line at the end of a journal, which a machine left that lost its power. Its lock is held.

    Raises DataError: there are other lines that nobody could read.
    """
    data = file.read_bytes() if file.is_file() else b""
    whole = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise damaged(file, f"line {number}: {error}") from error
        if not isinstance(found, dict) or not isinstance(found.get("op_code"), int) or "worker_id" not in found:
            raise damaged(file, f"line {number} is none of Optuna's")
    if whole < len(data):
        os.truncate(file, whole)


def damaged(file: Path, why: str) -> DataError:
    """What is said of a journal that cannot be read."""
    fix = "delete it while nobody works: what was trained is known from the run folders, and is not trained again"
    return DataError(f"{file}: damaged ({why:.200})", fix=fix)


def fill(journal: Journal, cells: Iterable[tuple[str, Mapping[str, Any]]], retry: bool) -> int:
    """Let the cells wait that nobody has; returns how many trials wait then.

    Args:
        journal: where to.
        cells: hash and levels of those that are not finished.
        retry: whether cells that failed are among what is to be done.
    """
    with journal.guarded():
        journal.revive()
        taken = {t.user_attrs.get(CELL) for t in journal.trials(journal.states.WAITING, journal.states.RUNNING)}
        last = {t.user_attrs.get(CELL): t.user_attrs.get(ENDED) for t in journal.trials(journal.states.FAIL)}
        for name, levels in cells:
            if name not in taken and (retry or last.get(name) != FAILED):
                journal.add({}, {CELL: name, LEVELS: dict(levels)})
        return len(journal.waiting())


def in_turn(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """The first of each group, then the second of each, and so on: workers at a time share as little as possible."""
    longest = max(map(len, groups), default=0)
    return [group[k] for k in range(longest) for group in groups if k < len(group)]
