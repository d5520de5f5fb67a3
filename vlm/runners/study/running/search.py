"""Search in place of the full grid: Optuna chooses the levels of each trial, and may end trials that are bad."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import ConfigError, UserError
from vlm.common.trust import trusting
from vlm.config.schema import ConfigProblems
from vlm.runners.study.folder import run_folder
from vlm.runners.study.grid.axes import MOST_CELLS, combinations, in_order, is_there, matches
from vlm.runners.study.grid.budget import Measurer
from vlm.runners.study.grid.build import Builder
from vlm.runners.study.grid.opened import open_file, study_folder
from vlm.runners.study.running.asking import faults_of
from vlm.runners.study.running.cells_file import read_cells, remember
from vlm.runners.study.running.journal import ENDED, FAILED, REPEATED, STOPPED, Journal, need_optuna
from vlm.runners.study.running.source import Prune
from vlm.runners.train.trackers import of_steps, read_log

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from vlm.runners.study.cells import Cell, StageRun, Study
    from vlm.runners.study.running.work import Work

Make = Callable[[Mapping[str, str], int], "Cell"]
MOST_REPEATED = 20
"""Trials in the journal for each that counts, after which a sampler that repeats itself is left alone."""


@dataclass(frozen=True)
class Space:
    """What a search chooses from.

    Attributes:
        make: the cell of labels (axis -> label) and a seed; raises UserError where it does not check.
        exclude: combinations that are left out, axis -> labels.
        of: hash of one of its cells, which is another one where the base, the budget or the like is.
    """

    make: Make
    exclude: Sequence[Mapping[str, tuple[str, ...]]] = ()
    of: str = ""


def open_study(path: str, options: Sequence[str] = ()) -> tuple[Study, Space | None]:
    """A study whose cells can be trained; of a search, those that were tried and what is chosen from.

    Raises ConfigError: all problems of the file and of all cells.
    """
    with trusting(True):
        read = open_file(path, options, trust=True)
        measurer = Measurer(read.file.processes, folder=study_folder(read))
        builder = Builder(read, "all", measurer, fits=True)
        study = builder.study()
        assert builder.sample is not None, "a study without problems has a cell"
        if faults := faults_of(study, builder.sample.runs[-1].config):
            raise ConfigProblems(str(path), faults)
    if read.file.search is None:
        return study, None

    def make(levels: Mapping[str, str], seed: int) -> Cell:
        with trusting(True):
            return builder.cell(levels, seed)

    return with_tried(study, make), Space(make, read.exclude, builder.sample.hash)


class Search:
    """Every trial is a combination with all seeds of the study."""

    def __init__(self, work: Work, space: Space) -> None:
        settings = work.study.file.search
        assert settings is not None, "not a search"
        self.work, self.study, self.space, self.settings = work, work.study, space, settings
        self.seeds = self.study.file.seeds
        self.trials = min(settings.trials, possible(self.study, space, settings.trials))
        self.total = self.trials * len(self.seeds)
        axes = [[a.name, [[v.label, v.sets] for v in a.levels], sorted(a.when.items())] for a in self.study.axes]
        asked = [asking.hash for asking in work.asked]
        about = json.dumps([axes, self.study.file.score, self.seeds, asked, space.of], default=str)
        self.name = f"search-{hashlib.sha256(about.encode()).hexdigest()[:12]}"
        self._making = threading.Lock()

    def journal(self, number: int) -> Journal:
        """The search's list of trials, with a sampler of this worker: two that draw alike would repeat each other."""
        optuna = need_optuna()
        samplers, settings = optuna.samplers, self.settings
        plain = Journal(self.work.folder, self.name)
        seed = (settings.seed * 7919 + len(plain.trials()) * 31 + number) % 2**32
        if settings.sampler == "random":
            sampler = samplers.RandomSampler(seed=seed)
        elif settings.sampler == "nsgaii":
            sampler = samplers.NSGAIISampler(population_size=max(2, min(50, self.trials // 4)), seed=seed)
        else:
            sampler = samplers.TPESampler(n_startup_trials=min(10, max(2, self.trials // 4)), seed=seed)
        kinds = {
            "none": optuna.pruners.NopPruner,
            "median": optuna.pruners.MedianPruner,
            "hyperband": optuna.pruners.HyperbandPruner,
            "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        }
        return Journal(self.work.folder, self.name, sampler, kinds[settings.pruner]())

    def fill(self, retry: bool) -> int:
        """Let as many trials wait as are missing, first those that were begun; returns the cells that are done."""
        journal = self.journal(0)
        states = journal.states
        with journal.guarded():
            journal.revive()
            again = [t for t in journal.trials(states.FAIL) if t.user_attrs.get(ENDED) in (STOPPED, *[FAILED] * retry)]
            later = {t.number: _key(_params(t)) for t in journal.trials()}
            for trial in again:
                key = _key(trial.params)
                if trial.params and not any(n > trial.number and other == key for n, other in later.items()):
                    journal.add(trial.params, {})
            done = self._counted(journal, states.COMPLETE, states.PRUNED)
            for _ in range(self.trials - done - self._counted(journal, states.WAITING, states.RUNNING)):
                journal.add({}, {})
        return done * len(self.seeds)

    def knows(self, cell: str) -> bool:
        """Every trial of the list is one of the search."""
        return True

    def _counted(self, journal: Journal, *of: Any) -> int:
        return sum(t.user_attrs.get(ENDED) != REPEATED for t in journal.trials(*of))

    def cells(self, journal: Journal, trial: Trial) -> Sequence[Cell]:
        """The cells that the sampler chooses; none where the combination is excluded or was tried before."""
        levels = choose(self.study, trial)
        excluded = any(matches(levels, where) for where in self.space.exclude)
        before = None if excluded else _known(journal, trial)
        if excluded or before is not None:
            value = before.value if before is not None else None
            journal.repeat(trial, value)
            if len(journal.trials()) < MOST_REPEATED * self.trials:
                journal.add({}, {})
            return []
        with self._making:
            cells = [self.space.make(levels, seed) for seed in self.seeds]
        remember(self.work.folder, cells)
        return cells

    def pruning(self, journal: Journal, trial: Trial, cell: Cell) -> Prune | None:
        """Reports what the first seed's run validates, and asks the pruner."""
        if self.settings.pruner == "none" or cell.seed != self.seeds[0]:
            return None
        return Reports(trial, self.work.folder)


class Reports:
    """Passes the validations of a run to its trial as they come; true once the pruner wants to end it."""

    def __init__(self, trial: Trial, folder: Path) -> None:
        self.trial, self.folder = trial, folder
        self._size, self._told = 0, set[int]()

    def __call__(self, run: StageRun) -> bool:
        """Look into the run's log."""
        file = run_folder(self.folder, run.hash) / "log.jsonl"
        size = file.stat().st_size if file.is_file() else 0
        if size == self._size:
            return False
        self._size, last = size, None
        best = run.config.run.best
        name = best.removeprefix("-")
        for record in of_steps(read_log(file)):
            of_this = record["kind"] == ("valid" if name == "loss" else "eval") and name in record
            if of_this and record["step"] not in self._told:
                lower = name == "loss" or best.startswith("-")
                self.trial.report(-record[name] if lower else record[name], record["step"])
                self._told.add(record["step"])
                last = record["step"]
        return last not in (None, run.steps) and self.trial.should_prune()


def choose(study: Study, trial: Trial) -> dict[str, str]:
    """Axis -> label; axes whose condition does not hold are not asked for."""
    found: dict[str, str] = {}
    for axis in in_order(study.axes):
        if is_there(axis, found):
            found[axis.name] = trial.suggest_categorical(axis.name, [level.label for level in axis.levels])
    return {axis.name: found[axis.name] for axis in study.axes if axis.name in found}


def possible(study: Study, space: Space, enough: int) -> int:
    """How many combinations there are, or ``enough`` where these are too many to count."""
    try:
        return sum(1 for _ in combinations(study.axes, space.exclude, MOST_CELLS))
    except ConfigError:
        return enough


def with_tried(study: Study, make: Make) -> Study:
    """A study of a search with the cells that were tried, in the order in which they were first."""
    cells = []
    for name, about in read_cells(study.folder).items():
        try:
            cell = make(about.get("levels") or {}, int(about.get("seed") or 0))
        except (UserError, TypeError, ValueError, KeyError):
            continue  # of an earlier version, with axes or labels that are gone
        if cell.hash == name:
            cells.append(cell)
    return replace(study, cells=tuple(cells))


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial has, or will have once it is taken."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def _known(journal: Journal, trial: Trial) -> FrozenTrial | None:
    """An earlier trial of the same combination that ended with a value, or runs."""
    key, states = _key(trial.params), journal.states
    others = journal.trials(states.COMPLETE, states.PRUNED, states.RUNNING)
    return next((t for t in others if t.number < trial.number and _key(t.params) == key), None)
