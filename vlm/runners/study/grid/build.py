"""The runs of every cell: base, levels, seed and the run before become one checked configuration each."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path as FilePath
from typing import Any

from vlm.checkpoint.fits import misfits
from vlm.common.errors import ConfigError, UserError
from vlm.common.trust import is_given
from vlm.config.api import Config, load_config
from vlm.config.load import DATA_SECTIONS, read_source
from vlm.config.options import Option, to_path, value_of
from vlm.config.schema import MISSING, ConfigProblems, Path, Problem, Report
from vlm.config.tree import Tree
from vlm.config.types import Check
from vlm.runners.plan.sources import ABSENT
from vlm.runners.study.cells import Cell, StageRun, Study
from vlm.runners.study.file import Budget
from vlm.runners.study.folder import run_folder
from vlm.runners.study.grid.axes import MOST_CELLS, combinations, in_order, is_there, stage_of, whole_part
from vlm.runners.study.grid.budget import Measurer
from vlm.runners.study.grid.changed import substituted, with_run
from vlm.runners.study.grid.identity import hash_of, identity
from vlm.runners.study.grid.opened import Read, study_folder

Key = tuple[tuple[str, str], ...]
BEFORE = "study-run-before"
"""Last part of the path that stands for the run before while a configuration is read."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value that a study sets: dotted key, value, and where the study says so."""

    key: str
    value: Any
    origin: str
    by: str


@dataclasses.dataclass
class Made:
    """A stage of a combination, as far as it does not depend on the seed.

    Attributes:
        config: with a placeholder for the run before.
        content: see :func:`identity`.
        linked: whether there is a run before.
        steps: of its budget, by seed, or why it gives none.
    """

    config: Config
    content: dict[str, Any]
    linked: bool
    steps: dict[int, int | UserError] = dataclasses.field(default_factory=dict)


class Builder:
    """Builds the cells of a study; configurations that only differ in seed are read once.

    Attributes:
        read: the file.
        check: see :func:`vlm.config.load.load_config`.
        measurer: finds the steps of budgets; None: only those of budgets in steps are set.
        fits: whether each model is built without its numbers, and compared with its files.
        folder: of the study.
        faults: problems of each combination, by stage.
        sample: a cell that checks, if there is one.
    """

    def __init__(
        self, read: Read, check: Check = "weights", measurer: Measurer | None = None, fits: bool = False
    ) -> None:
        self.measurer, self.fits = measurer, fits
        self.read, self.check, self.trust = read, check, is_given()
        self.folder = study_folder(read)
        self.sets = {axis.name: {level.label: level.sets for level in axis.levels} for axis in read.axes}
        self.bases: dict[str, Tree] = {}
        self.made: dict[str, Made | UserError] = {}
        self.placeholder = str(self.folder / BEFORE)
        self.faults: dict[Key, list[Problem]] = {}
        self.sample: Cell | None = None
        self.reference = self._reference()

    def study(self) -> Study:
        """All cells. Raises ConfigProblems: any of them does not check."""
        study = self.examine()
        problems = self.problems()
        if problems:
            raise ConfigProblems(str(self.read.source), problems)
        return study

    def examine(self) -> Study:
        """All cells that check, what is wrong with the others is in ``faults``; of a search one combination is tried.

        Raises ConfigError: there are no cells, or too many.
        """
        searches, seeds = self.read.file.search is not None, self.read.file.seeds
        runs = {tuple(combo.items()): self._first_hash(combo) for combo in self.combinations()}
        seen: Counter[str] = Counter()
        rank = {}
        for key, first in runs.items():
            rank[key] = seen[first]
            seen[first] += 1
        order = sorted(runs, key=lambda key: rank[key])
        seeds = seeds[:1] if searches else seeds
        cells = [self.cell(dict(key), seed) for key in order if key not in self.faults for seed in seeds]
        self.sample = next(iter(cells), None)
        return self._study(() if searches else cells)

    def _study(self, cells: Sequence[Cell]) -> Study:
        read, reference = self.read, tuple(self.reference.items())
        return Study(read.file, read.source, self.folder, read.axes, tuple(read.stages), tuple(cells), reference)

    def named(self, key: Key) -> str:
        """A combination in a few words."""
        return self._study(()).named(key)

    def combinations(self) -> list[dict[str, str]]:
        """Axis -> label of every combination, of a search only the first.

        Raises ConfigError: none, too many, or the reference is left out.
        """
        read = self.read
        most = max(1, MOST_CELLS // len(read.file.seeds)) if read.file.seeds else 0
        if not most:
            raise ConfigError(f"{read.source}: seeds is empty", fix="e.g. seeds: [0, 1, 2]")
        try:
            around = self.reference if read.file.design == "one_at_a_time" else None
            found = combinations(read.axes, read.exclude, most, around)
            combos = list(islice(found, 1) if read.file.search else found)
        except ConfigError as error:
            raise ConfigError(f"{read.source}: {error}") from error
        if not combos:
            raise ConfigError(f"{read.source}: exclude leaves no combination", fix="take entries of exclude out")
        if self.reference not in combos and not read.file.search:
            shown = ", ".join(f"{k}: {v}" for k, v in self.reference.items())
            fix = "name another one: reference: {AXIS: LABEL}"
            raise ConfigError(f"{read.source}: exclude leaves out the reference ({shown})", fix=fix)
        return combos

    def _reference(self) -> dict[str, str]:
        found: dict[str, str] = {}
        named = self.read.reference
        for axis in in_order(self.read.axes):
            if is_there(axis, found):
                found[axis.name] = named.get(axis.name, axis.levels[0].label)
        if foreign := sorted(set(named) - set(found)):
            fix = "leave it out, or choose values for which `when` holds"
            raise ConfigError(f"{self.read.source}: reference: the axis {foreign[0]} is not there", fix=fix)
        return {axis.name: found[axis.name] for axis in self.read.axes if axis.name in found}

    def problems(self) -> list[Problem]:
        """What is wrong, each with the cells that it is wrong with."""
        cells: dict[Problem, list[Key]] = {}
        for key, found in self.faults.items():
            for problem in dict.fromkeys(found):
                cells.setdefault(problem, []).append(key)
        every = None if self.read.file.search else len(self.combinations())
        result = []
        for problem, keys in cells.items():
            names = "; ".join(self.named(key) for key in keys[:3])
            more = f"; and {len(keys) - 3} more" if len(keys) > 3 else ""
            where = "every cell" if len(keys) == every else f"{names}{more}"
            first, *rest = problem.message.split("\n")
            result.append(Problem(problem.path, problem.where, "\n".join([f"{first} [{where}]", *rest])))
        return result

    def cell(self, levels: Mapping[str, str], seed: int) -> Cell:
        """The cell of a combination, in which axes whose condition does not hold are left out.

        Raises ConfigProblems: it does not check.
        """
        key = tuple(levels.items())
        runs: dict[str, StageRun] = {}
        previous: str | None = None
        problems: list[Problem] = []
        for stage in self.read.stages:
            after = self.read.stages[stage].after or previous
            previous = stage
            if after is not None and after not in runs:
                continue  # the stage before does not check
            try:
                runs[stage] = self._run(stage, levels, seed, runs[after] if after else None)
            except ConfigProblems as error:
                problems += [self._named(problem, stage) for problem in error.problems]
            except UserError as error:
                problems.append(Problem(self._place(stage), "", str(error)))
        if problems:
            self.faults[key] = problems
            raise ConfigProblems(str(self.read.source), problems)
        return Cell(dict(levels), seed, tuple(runs.values()))

    def _place(self, stage: str) -> str:
        return f"stages.{stage}" if self.read.file.stages else "base"

    def _named(self, problem: Problem, stage: str) -> Problem:
        path = f"{stage}.{problem.path}" if self.read.file.stages else problem.path
        return Problem(path, problem.where, problem.message)

    def _first_hash(self, levels: dict[str, str]) -> str:
        """Hash of the first run of a combination; "" if the combination does not check."""
        try:
            return self.cell(levels, self.read.file.seeds[0]).runs[0].hash
        except UserError:
            return ""

    def _run(self, stage: str, levels: Mapping[str, str], seed: int, before: StageRun | None) -> StageRun:
        made = self._made(stage, levels, before is not None)
        budget = self.read.budget(stage)
        path = str(run_folder(self.folder, before.hash)) if before else ""
        config = substituted(made.config, {self.placeholder: path}) if before else made.config
        own = hash_of({**made.content, "seed": seed, "before": before.hash if before else None})
        changes: dict[str, Any] = {"seed": seed, "output_dir": str(run_folder(self.folder, own))}
        steps = self._steps(stage, made, budget, seed) if budget else config.run.total_steps
        if budget and steps:
            changes["max_steps"] = steps
        return StageRun(stage, own, with_run(config, changes), before.hash if before else None, budget, steps)

    def _steps(self, stage: str, made: Made, budget: Budget, seed: int) -> int | None:
        """Steps that the budget gives a run; None: they are not asked for. Raises UserError: it gives none."""
        if budget.steps is None and self.measurer is None:
            return None
        if seed not in made.steps:
            measurer = self.measurer or Measurer(self.read.file.processes)
            config, reference = made.config, self._made(stage, self.reference, made.linked).config
            try:
                own = with_run(config, {"seed": seed})
                made.steps[seed] = measurer.steps(own, budget, with_run(reference, {"seed": seed}))
            except UserError as error:
                made.steps[seed] = error
        found = made.steps[seed]
        if isinstance(found, UserError):
            raise found
        return found

    def length(self, stage: str, budget: Budget | None) -> Any:
        """What decides the length of a run, for its hash."""
        if budget is None:
            return None
        given = {key: value for key, value in vars(budget).items() if value is not None}
        if given.get("flops") == "reference":
            given["reference"] = [(s.key, s.value) for s in self.settings(stage, self.reference)]
        return given

    def settings(self, stage: str, levels: Mapping[str, str]) -> list[Setting]:
        """What the study sets for a stage of a combination; broader keys first, later ones win.

        Raises ConfigProblems: two axes set the same key.
        """
        read = self.read
        found = [Setting(k, v, self._origin(("set", k)), "set") for k, v in read.file.set.items()]
        found += [
            Setting(k, v, self._origin(("stages", stage, "set", k)), "set") for k, v in read.stages[stage].set.items()
        ]
        stages = list(read.stages) if read.file.stages else []
        for name, label in levels.items():
            index = next(i for i, known in enumerate(self.sets[name]) if known == label)
            for key, value in self.sets[name][label].items():
                short = isinstance(read.file.axes[name], list)
                at: Path = ("axes", name, index) if short else ("axes", name, label, key)
                found.append(Setting(key, value, self._origin(at), name))
        own = []
        for setting in found:
            meant = stage_of(setting.key, stages)
            if meant in (None, stage):
                key = setting.key if meant is None else setting.key.partition(".")[2]
                own.append(dataclasses.replace(setting, key=key))
        self._check_clashes(own)
        return sorted(own, key=lambda s: (s.by != "set", s.key.count(".")))

    def _check_clashes(self, settings: list[Setting]) -> None:
        by: dict[str, str] = {}
        problems = []
        for setting in settings:
            other = by.get(setting.key, "set")
            if setting.by != "set" and other not in ("set", setting.by):
                message = f"the axes {other} and {setting.by} both set it; give one of them a condition (when)"
                problems.append(Problem(setting.key, setting.origin, message))
            by[setting.key] = setting.by
        if problems:
            raise ConfigProblems(str(self.read.source), problems)

    def _origin(self, path: Path) -> str:
        return Report(self.read.tree.origins).where(path)

    def _made(self, stage: str, levels: Mapping[str, str], linked: bool) -> Made:
        """What all seeds of a combination share of a stage, and combinations that agree on it."""
        settings = self.settings(stage, levels)
        given = [(s.key, s.value, s.by == "set", s.origin if s.value == MISSING else "") for s in settings]
        memo = hash_of([stage, given, linked])
        if memo not in self.made:
            try:
                config, is_open = self._load(stage, settings, linked)
                run = dataclasses.replace(config.run, seed=0)
                length = self.length(stage, self.read.budget(stage))
                unseeded, known = dataclasses.replace(config, run=run), {self.placeholder: "before"}
                content = identity(unseeded, length, self.read.file.processes, known)
                if is_open:
                    content["open"] = [(s.key, s.value, s.origin) for s in settings]
                self.made[memo] = Made(config, content, linked)
            except UserError as error:
                self.made[memo] = error
        found = self.made[memo]
        if isinstance(found, UserError):
            raise found
        return found

    def _load(self, stage: str, settings: list[Setting], linked: bool) -> tuple[Config, bool]:
        """The configuration, and whether something is not known yet that a run needs: a path, or a dataset's place."""
        tree = copy.deepcopy(self._base(stage))
        options = []
        for setting in settings:
            path = to_path(setting.key)
            value = whole_part(path, copy.deepcopy(setting.value))
            if value == MISSING and self.check == "none":
                value = ABSENT
            whole = isinstance(value, dict) and "name" in value
            if is_section(path) and isinstance(value, dict):
                tree.put(path, value, setting.origin)
                tree.origins |= {(*path, key): setting.origin for key in value}
            else:
                options.append(Option(path, value, origin=setting.origin, whole=whole))
        if linked:
            options.append(self._link(stage, tree, options))
        if self.check == "none":
            leave_open(tree)
        config = load_config(tree, options, check=self.check, train=True, trust=self.trust, coming=[self.placeholder])
        if self.fits and (problems := misfits(config)):
            raise ConfigProblems(str(self.read.source), problems)
        if linked and self.placeholder not in [file.path for file in config.model.weights]:
            into = self.read.stages[stage].into
            fix = "name the parameter that takes a run folder, e.g. into: model.ckpt"
            raise ConfigError(f"into: the model loads nothing from {into}, so the stage before is lost", fix=fix)
        left_out = set(tree.data.get("datasets") or {}) - set(config.datasets)
        return config, bool(left_out) or ABSENT in [w.path for w in config.model.weights]

    def _link(self, stage: str, tree: Tree, options: Sequence[Option]) -> Option:
        """What loads the run before: the key ``into``, or one more entry of ``model.weights``.

        Raises ConfigError: ``model.weights`` is not listed here, so that nothing can be added to it.
        """
        into, origin = to_path(self.read.stages[stage].into), self._origin(("stages", stage, "into"))
        if into != ("model", "weights"):
            return Option(into, self.placeholder, origin=origin)
        listed = value_of(options, into, tree.get(into))
        if not isinstance(listed, list):
            fix = "name the parameter that takes a run folder, e.g. into: model.ckpt"
            raise ConfigError("into: model.weights, but the base does not list model.weights itself", fix=fix)
        return Option(into, [*listed, {"format": "trained", "path": self.placeholder}], origin=origin)

    def _base(self, stage: str) -> Tree:
        if stage not in self.bases:
            self.bases[stage] = read_base(self.read, self.read.stages[stage].base)
        return self.bases[stage]


def is_section(path: Path) -> bool:
    """Whether a mapping at ``path`` stands for all that is there: the model, a section of datasets, a dataset."""
    return path == ("model",) or (path[0] in DATA_SECTIONS and len(path) <= 2)


def read_base(read: Read, base: str) -> Tree:
    """The run file ``base``: beside the study, or ``system/name`` of what ships.

    Raises ConfigError: neither, or not a run file.
    """
    path = FilePath(base).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return read_source(read.source.parent / path)[0]
    beside = read.source.parent / path
    return read_source(beside if beside.is_dir() else base, train=True)[0]


def leave_open(tree: Tree) -> None:
    """Fill the paths of the model that a file leaves open, for plans, which read sizes only."""
    model = tree.data.get("model")
    for key in [k for k, v in model.items() if v == MISSING] if isinstance(model, dict) else ():
        tree.data["model"][key] = ABSENT
