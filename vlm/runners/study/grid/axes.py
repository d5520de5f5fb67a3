"""The axes of a study: values with labels, conditions, and the combinations that they allow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm.common.errors import ConfigError, printable
from vlm.config.load import SECTIONS
from vlm.config.options import to_path
from vlm.config.schema import Path, Report, describe
from vlm.config.types import PARTS
from vlm.runners.study.cells import Axis, Level
from vlm.runners.study.file import StudyFile

LONGEST = 48
"""Characters of a derived label."""
MOST_CELLS = 10_000
"""Cells of a study, seeds counted."""
MOST_TRIED = 50_000
"""Combinations that are looked at, those that ``exclude`` leaves out counted."""
PART_LISTS: tuple[Path, ...] = (("model", "bridge"), ("model", "inserts"))
DECIDED = {
    "run.seed": "seeds",
    "run.output_dir": "output",
    "run.resume": "nothing, since interrupted runs go on by themselves",
    "run.overwrite": "nothing, since a changed cell is another run",
}
"""Keys of run files that a study decides itself, and by what."""


def whole_part(path: Path, value: Any) -> Any:
    """``value`` as the section has it: names of parts written out, and a single bridge or insert as a list of one."""
    listed = path[:-1] in PART_LISTS
    if path in PART_LISTS:
        items = value if isinstance(value, list) else [] if value is None else [value]
        return [{"name": item} if isinstance(item, str) else item for item in items]
    if isinstance(value, str) and "${" not in value and (path in PARTS or listed):
        return {"name": value}
    return value


def label_of(value: Any) -> str:
    """A value in few words: ``linear``, ``mlp depth=2``, ``qformer + linear``, ``null``, ``0.5``.

    Options that would make it long are left out, control characters are written as escapes. It depends on nothing but
    the value, and is not unique.
    """
    text = _shown(_words(value))
    if len(text) > LONGEST and (names := _names(value)):
        text = _shown(names)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _shown(text: str) -> str:
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _names(value: Any) -> str:
    """The names of parts without their options; "" where the value names none."""
    parts = value if isinstance(value, list) else [value]
    names = [part.get("name") if isinstance(part, Mapping) else part for part in parts]
    return " + ".join(map(str, names)) if all(isinstance(name, str) for name in names) else ""


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, Mapping):
        name = value.get("name")
        head = [name] if isinstance(name, str) else []
        return " ".join([*head, *(f"{k}={_inner(v)}" for k, v in value.items() if not (k == "name" and head))]) or "{}"
    if isinstance(value, list):
        if value and all(isinstance(v, Mapping) and "name" in v or isinstance(v, str) for v in value):
            return " + ".join(map(_words, value))
        return _inner(value)
    return json.dumps(value)


def _inner(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_inner(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inner, value)) + "]"
    return json.dumps(value)


def read_axes(file: StudyFile, stages: Sequence[str], report: Report) -> tuple[Axis, ...]:
    """The axes with their conditions; problems go to ``report``."""
    axes: list[Axis] = []
    for name, written in file.axes.items():
        at: Path = ("axes", name)
        if not written:
            report.add(at, f"found {describe(written)}, expected values, e.g. [linear, {{name: mlp, depth: 2}}]")
            continue
        if name != _shown(name):
            report.add(at, "found a name with control characters")
            continue
        levels = _short(name, written, at, stages, report) if isinstance(written, list) else None
        levels = _long(written, at, stages, report) if isinstance(written, dict) else levels
        if levels:
            named = {stage_of(key, stages) for level in levels for key in level.sets}
            axes.append(Axis(name, tuple(levels), next(iter(named)) if len(named) == 1 else None))
    conditions = _conditions(file, axes, report)
    return tuple(Axis(a.name, a.levels, a.stage, conditions.get(a.name, {})) for a in axes)


def stage_of(key: str, stages: Sequence[str]) -> str | None:
    """The stage that a dotted key begins with; None: it is meant for all."""
    head = key.partition(".")[0]
    return head if head in stages and "." in key else None


def check_key(key: str, at: Path, stages: Sequence[str], budget: bool, report: Report) -> bool:
    """Whether a dotted key, with or without a stage before it, can be set by a study; else a problem is noted."""
    stage = stage_of(key, stages)
    own = key if stage is None else key.partition(".")[2]
    sections = [s for s in SECTIONS if s != "plugins"]
    try:
        path = to_path(own)
    except ConfigError:
        report.add(at, f"found {key!r:.80}, expected a dotted key such as run.init_lr")
        return False
    if path[0] not in sections:
        report.unknown(at, [*sections, *stages], "section or stage", str(path[0]))
        return False
    if own in DECIDED:
        report.add(at, f"{own} is decided by {DECIDED[own]}")
        return False
    if budget and own in ("run.max_steps", "run.max_epoch"):
        report.add(at, f"{own} is decided by the budget; leave one of them out")
        return False
    return True


def check_setting(key: str, value: Any, at: Path, stages: Sequence[str], budget: bool, report: Report) -> bool:
    """As :func:`check_key`, also for the keys of a whole section ``run`` that is set at once."""
    if not check_key(key, at, stages, budget, report):
        return False
    own = key if stage_of(key, stages) is None else key.partition(".")[2]
    inner = value if own == "run" and isinstance(value, Mapping) else {}
    return not [name for name in inner if not check_key(f"{own}.{name}", at, [], budget, report)]


def has_budget(file: StudyFile, stage: str | None) -> bool:
    """Whether the length of a stage (None: of any) is derived from a budget."""
    own = [s.budget for name, s in file.stages.items() if stage in (None, name)]
    return file.budget is not None or any(b is not None for b in own)


def _short(name: str, values: list[Any], at: Path, stages: Sequence[str], report: Report) -> list[Level]:
    if not all(check_setting(name, value, at, stages, False, report) for value in values):
        return []
    labels: list[str] = []
    for index, value in enumerate(values):
        label = label_of(value)
        if any(type(value) is type(other) and value == other for other in values[:index]):
            report.add((*at, index), f"the value {label!r} is given twice")
        copies = 2
        while label in labels:  # long values that begin alike, or 1 and "1"
            label, copies = f"{label_of(value)[: LONGEST - 5]} #{copies}", copies + 1
        labels.append(label)
    return [Level(label, {name: value}) for label, value in zip(labels, values)]


def _long(written: dict[str, Any], at: Path, stages: Sequence[str], report: Report) -> list[Level]:
    levels = []
    for label, sets in written.items():
        place = (*at, label)
        if sets is None:
            sets = {}
        if not isinstance(sets, Mapping):
            report.add(place, f"found {describe(sets)}, expected a mapping of dotted keys, e.g. {{run.init_lr: 1e-3}}")
            continue
        if label != _shown(label):
            report.add(place, "found a label with control characters")
        if not label.strip() or len(label) > LONGEST:
            report.add(place, f"found a label of {len(label)} characters, expected 1 to {LONGEST}")
        unusable = [k for k, value in sets.items() if not check_setting(k, value, (*place, k), stages, False, report)]
        if not unusable:
            levels.append(Level(label, dict(sets)))
    return levels if len(levels) == len(written) else []


def labels_in(value: Any) -> list[str]:
    """What ``when``, ``exclude`` and ``reference`` name: a label or value, or a list of them."""
    return [label_of(v) for v in (value if isinstance(value, list) else [value])]


def check_where(where: Mapping[str, Any], axes: Sequence[Axis], at: Path, report: Report) -> dict[str, tuple[str, ...]]:
    """Axis -> labels, as far as they are known; other names are reported."""
    known = {axis.name: [level.label for level in axis.levels] for axis in axes}
    found = {}
    for name, value in where.items():
        if name not in known:
            report.unknown((*at, name), list(known), "axis")
            continue
        labels = labels_in(value)
        for label in labels:
            if label not in known[name]:
                report.unknown((*at, name), known[name], f"value of {name}", label)
        found[name] = tuple(labels)
    return found


def _conditions(file: StudyFile, axes: Sequence[Axis], report: Report) -> dict[str, dict[str, tuple[str, ...]]]:
    known = [axis.name for axis in axes]
    conditions: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, where in file.when.items():
        if name not in known:
            if name not in file.axes:
                report.unknown(("when", name), known, "axis")
            continue
        conditions[name] = check_where(where, axes, ("when", name), report)
    for name in conditions:
        if name in _needed(name, conditions):
            report.add(("when", name), "the condition depends on the axis itself")
            conditions[name] = {}
    return conditions


def _needed(name: str, conditions: Mapping[str, Mapping[str, Any]]) -> set[str]:
    found: set[str] = set()
    new = set(conditions.get(name, ()))
    while new:
        found |= new
        new = {other for n in new for other in conditions.get(n, ())} - found
    return found


def in_order(axes: Sequence[Axis]) -> list[Axis]:
    """The axes, each after those that its condition asks about."""
    result: list[Axis] = []
    while len(result) < len(axes):
        done = {axis.name for axis in result}
        result += [a for a in axes if a.name not in done and set(a.when) <= done][:1]
    return result


def is_there(axis: Axis, levels: Mapping[str, str]) -> bool:
    """Whether the condition of ``axis`` holds; the axes that it asks about are decided."""
    return all(levels.get(other) in labels for other, labels in axis.when.items())


def combinations(
    axes: Sequence[Axis],
    exclude: Sequence[Mapping[str, tuple[str, ...]]],
    most: int,
    around: Mapping[str, str] | None = None,
) -> Iterator[dict[str, str]]:
    """Axis -> label of every combination that is not excluded, in the order of the file.

    Args:
        axes: of the study.
        exclude: combinations that are left out.
        most: combinations that are allowed.
        around: a combination; only those are given that differ from it in one of its axes. None: all.

    Raises ConfigError: more than ``most``, or too many excluded ones to look through.
    """
    ordered, names = in_order(axes), [axis.name for axis in axes]
    tried = found = 0
    fix = "take axes or values out, give them conditions (when), or search over them (search: {trials: 50})"
    for levels in _expand(ordered, {}, around):
        tried += 1
        if tried > MOST_TRIED:
            raise ConfigError(f"more than {MOST_TRIED:,} combinations, excluded ones counted", fix=fix)
        if any(matches(levels, where) for where in exclude):
            continue
        found += 1
        if found > most:
            raise ConfigError(
                f"more than {most:,} combinations of the axes ({MOST_CELLS:,} cells are allowed)", fix=fix
            )
        yield {name: levels[name] for name in names if name in levels}


def matches(levels: Mapping[str, str], where: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether all that ``where`` names is there, with one of its labels."""
    return bool(where) and all(levels.get(axis) in labels for axis, labels in where.items())


def _expand(axes: Sequence[Axis], levels: dict[str, str], around: Mapping[str, str] | None) -> Iterator[dict[str, str]]:
    if around is not None and sum(around.get(axis, label) != label for axis, label in levels.items()) > 1:
        return
    if not axes:
        yield levels
        return
    first, *rest = axes
    if not is_there(first, levels):
        yield from _expand(rest, levels, around)
        return
    for level in first.levels:
        yield from _expand(rest, {**levels, first.name: level.label}, around)
