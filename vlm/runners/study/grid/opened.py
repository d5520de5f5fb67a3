"""Opens a study file: its stages, axes and conditions, checked without the files that they name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from vlm.common.trust import trusting
from vlm.config.load import import_plugins
from vlm.config.options import Option, apply_options, parse_options
from vlm.config.schema import Path, Report, read
from vlm.config.tree import Tree, parse_file
from vlm.runners.study.cells import Axis, Level
from vlm.runners.study.file import Budget, Stage, StudyFile
from vlm.runners.study.grid.axes import check_setting, check_where, has_budget, read_axes, stage_of

ONLY_STAGE = "train"
"""Name of the stage of a study that gives ``base`` alone."""
KEYED = ("axes", "when", "set", "reference")
"""Keys of a study file below which a dotted key is one word."""
STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
TAKEN = ("model", "datasets", "valid_datasets", "evaluation_datasets", "run", "plugins")


@dataclass(frozen=True)
class Read:
    """A study file that was read.

    Attributes:
        file: what it says.
        source: its path.
        tree: what was written, with its places.
        stages: by name, in the order of training; a study of one run has one.
        axes: in the order of the file.
        exclude: combinations that are left out: axis -> labels.
        reference: axis -> label, as far as the file names them.
    """

    file: StudyFile
    source: FilePath
    tree: Tree
    stages: dict[str, Stage]
    axes: tuple[Axis, ...]
    exclude: tuple[dict[str, tuple[str, ...]], ...]
    reference: dict[str, str]

    def budget(self, stage: str) -> Budget | None:
        """What the length of a stage is derived from; None: its file says it."""
        return self.stages[stage].budget or self.file.budget


def open_file(path: str | FilePath, options: Sequence[str] = (), *, trust: bool = False) -> Read:
    """A study file with its stages and axes. Raises ConfigError: all problems of the file."""
    source = FilePath(path).expanduser()
    tree = parse_file(source, str(path))
    report = Report(tree.origins, texts=tree.texts)
    with trusting(trust):
        _apply(tree, options, report)
        report.origins, report.texts = tree.origins, tree.texts
        file = read(StudyFile, tree.data, (), report)
        report.raise_if_any(str(path))
        import_plugins(file.plugins, report)
    stages = _stages(file, report)
    axes = read_axes(file, list(stages) if file.stages else [], report)
    _check_sets(file, axes, report)
    exclude = []
    for index, where in enumerate(file.exclude):
        if not where:
            report.add(("exclude", index), "found an empty mapping, expected {axis: label or labels}")
        exclude.append(check_where(where, axes, ("exclude", index), report))
    reference = _reference(file, axes, report)
    report.raise_if_any(str(path))
    return Read(file, source, tree, stages, axes, tuple(exclude), reference)


def study_folder(read: Read) -> FilePath:
    """Where the study keeps everything."""
    return FilePath(read.file.output or f"output/studies/{read.source.stem}")


def _apply(tree: Tree, options: Sequence[str], report: Report) -> None:
    """Write ``--options`` into what was read; a dotted key below ``axes``, ``set`` ... is one word."""
    moved = []
    for option in parse_options(options):
        words = [str(word) for word in option.path]
        at = 2 if words[0] == "stages" else 0
        if len(words) > at + 1 and words[at] in KEYED:
            path: Path = (*words[: at + 1], ".".join(words[at + 1 :]))
            option = Option(path, option.value, option.text, whole=True)
        moved.append(option)
    apply_options(tree, moved, report)


def _stages(file: StudyFile, report: Report) -> dict[str, Stage]:
    """Stages by name; that the file names none, or names them in two ways, is reported."""
    if file.search and file.design != "grid":
        report.add(("design",), f"found {file.design} and search; a search chooses among all combinations")
    if file.base is not None and file.stages:
        report.add(("base",), "found base and stages; a study of one run has base, one of several has stages")
    elif file.base is None and not file.stages:
        report.add(("base",), "missing; expected a run file, or stages")
    elif file.base == "":
        report.add(("base",), "found an empty text, expected a run file")
    for at, budget in ((("budget",), file.budget), *((("stages", n, "budget"), s.budget) for n, s in _items(file))):
        _check_budget(budget, at, report)
    if not file.stages:
        return {ONLY_STAGE: Stage(file.base or "")}
    result: dict[str, Stage] = {}
    for name, stage in file.stages.items():
        at = ("stages", name)
        if not STAGE_NAME.fullmatch(name) or name in TAKEN:
            report.add(
                at, f"found the name {name!r:.60}, expected letters, digits, - and _, and no section of run files"
            )
        if not stage.into.startswith("model."):
            report.add((*at, "into"), f"found {stage.into!r:.80}, expected a key that takes a run folder: model.ckpt")
        if stage.after is not None and stage.after not in result:
            report.unknown((*at, "after"), list(result), "earlier stage", stage.after)
        result[name] = stage
    return result


def _items(file: StudyFile) -> list[tuple[str, Stage]]:
    return list(file.stages.items())


def _check_budget(budget: Budget | None, at: Path, report: Report) -> None:
    if budget is not None:
        given = [key for key, value in vars(budget).items() if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            report.add(at, f"found {found}, expected exactly one of {', '.join(vars(budget))}")


def _check_sets(file: StudyFile, axes: Sequence[Axis], report: Report) -> None:
    """Report keys that a study cannot set."""
    stages = list(file.stages)
    for key, value in file.set.items():
        meant = stages if (stage := stage_of(key, stages)) is None else [stage]
        budget = all(has_budget(file, name) for name in meant) if meant else has_budget(file, None)
        check_setting(key, value, ("set", key), stages, budget, report)
    for name, one in file.stages.items():
        for key, value in one.set.items():
            check_setting(key, value, ("stages", name, "set", key), [], has_budget(file, name), report)
    for axis in axes:
        for key in {key for level in axis.levels for key in _keys(level)}:
            if key.endswith(("run.max_steps", "run.max_epoch")) and has_budget(file, axis.stage):
                report.add(("axes", axis.name), f"{key} is decided by the budget; leave one of them out")


def _keys(level: Level) -> list[str]:
    """What a value sets, with each key of a mapping."""
    inner = [f"{key}.{name}" for key, value in level.sets.items() if isinstance(value, dict) for name in value]
    return [*level.sets, *inner]


def _reference(file: StudyFile, axes: Sequence[Axis], report: Report) -> dict[str, str]:
    found = check_where(file.reference, axes, ("reference",), report)
    for name, labels in found.items():
        if len(labels) != 1:
            report.add(("reference", name), f"found {len(labels)} values, expected one")
    return {name: labels[0] for name, labels in found.items() if labels}
