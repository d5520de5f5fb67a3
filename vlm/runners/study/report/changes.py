"""What differs between the configurations of two combinations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlm.config.api import effective, flat

if TYPE_CHECKING:
    from vlm.runners.study.cells import Cell, Study
    from vlm.runners.study.report.effects import Key

OWN = ("run.output_dir", "run.save_path", "run.seed", "run.name")
"""Keys that differ between all cells."""
ABSENT = "(absent)"
LONGEST = 200
"""Characters of a value that are shown."""

Difference = tuple[str, str, str]
"""Dotted key, value of the reference, value of the other."""


def differences(study: Study, cells: Mapping[Key, Cell]) -> dict[Key, list[Difference]]:
    """What the configuration of each combination has otherwise than the reference's.

    Args:
        study: whose ``reference`` is meant; without a cell of it nothing is compared.
        cells: one cell of each combination.
    """
    if study.reference not in cells:
        return {}
    base = values_of(study, cells[study.reference])
    result = {}
    for key, cell in cells.items():
        if key != study.reference:
            mine = values_of(study, cell)
            keys = [*mine, *(k for k in base if k not in mine)]
            pairs = [(k, base.get(k, ABSENT), mine.get(k, ABSENT)) for k in keys]
            result[key] = [pair for pair in pairs if pair[1] != pair[2]]
    return result


def values_of(study: Study, cell: Cell) -> dict[str, str]:
    """Dotted key, after its stage if there are several, -> value; run folders and what follows from them left out."""
    result: dict[str, str] = {}
    folders = str(study.folder / "runs")
    for run in cell.runs:
        before = f"{run.stage}." if len(cell.runs) > 1 else ""
        for key, value in flat(effective(run.config)).items():
            if key not in OWN and not (isinstance(value, str) and value.startswith(folders)):
                result[before + key] = _text(value)
    return result


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "null" if value is None else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
