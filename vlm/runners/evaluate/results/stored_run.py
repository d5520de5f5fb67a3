"""``read_run``: the values and answers that an evaluation left, from its folder, its card or its file of values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.common.numbers import JSON_NUMBERS
from vlm.common.text import lines_of, read_text
from vlm.tasks.scoring.statistics import Metric, restored

VALUES, ANSWERS, CARD = "_values.jsonl", "_answers.jsonl", "_card.json"
MOST = 1 << 31
"""Largest file of values or answers in bytes."""
Place = tuple[str, str]
"""Dataset and image control."""
AGAIN = "evaluate again: vlm eval writes it"


@dataclass
class StoredRun:
    """What a run said about each dataset with each image control.

    Attributes:
        name: for people.
        file: of the values.
        metrics: the primary one first.
        facts: what must be equal in runs that are compared (benchmark, protocol, split, data), and ``runs``.
        answers: id -> line of the answers file; of several seeds the first. Empty where there is no such file.
    """

    name: str
    file: Path
    metrics: dict[Place, list[Metric]] = field(default_factory=dict)
    facts: dict[Place, dict[str, str]] = field(default_factory=dict)
    answers: dict[Place, dict[str, dict[str, Any]]] = field(default_factory=dict)


def read_run(path: str | Path, name: str = "") -> StoredRun:
    """A run by its result folder, card (``..._card.json``) or values (``..._values.jsonl``).

    Raises DataError: no such file, several evaluations in the folder, or a line of another form.
    """
    file = values_of(Path(path))
    stem = file.name.removesuffix(VALUES)
    run = StoredRun(name or (file.parent.name if stem in ("evaluation", "") else stem) or str(path), file)
    for where, line in _objects(file):
        place = str(line.get("dataset", "")), str(line.get("image", ""))
        if not (metric := restored(line, where)).units:
            continue  # no question had a reference
        run.metrics.setdefault(place, []).append(metric)
        names = ("benchmark", "protocol", "split", "data", "runs")
        run.facts[place] = {key: str(line.get(key, "")) for key in names}
    if not run.metrics:
        raise DataError(f"{file}: no values in it", fix=AGAIN)
    answers = file.with_name(f"{stem}{ANSWERS}")
    if answers.is_file():
        for _, line in _objects(answers):
            place = str(line.get("dataset", "")), str(line.get("image", ""))
            run.answers.setdefault(place, {}).setdefault(str(line.get("id", "")), line)
    return run


def values_of(path: Path) -> Path:
    """The file of values that a path stands for. Raises DataError: there is none, or there are several."""
    if path.is_dir():
        found = sorted(path.glob(f"*{VALUES}"))
        if len(found) != 1:
            listed = ", ".join(f.name for f in found[:5]) or "none"
            raise DataError(
                f"{path}: expected one file *{VALUES}, found {listed}",
                fix="name one of them" if found else AGAIN,
            )
        return found[0]
    if path.name.endswith(CARD):
        path = path.with_name(path.name.removesuffix(CARD) + VALUES)
    if not path.name.endswith(VALUES):
        raise DataError(
            f"{path}: not the result of an evaluation",
            fix=f"name a result folder, a card (*{CARD}) or values (*{VALUES}) of vlm eval",
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file", fix=AGAIN)
    return path


def _objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines_of(read_text(file, max_bytes=MOST)), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line, **JSON_NUMBERS)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{number}: not JSON ({error})", fix=AGAIN) from None
        if not isinstance(found, dict):
            raise DataError(f"{file}:{number}: expected an object, found {type(found).__name__}", fix=AGAIN)
        yield f"{file}:{number}", found
