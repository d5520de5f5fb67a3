"""The list of all cells that ever were in a study, so that its folder can be understood without its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.owned import replace_text
from vlm.runners.study.folder import CELLS, QUEUE_LOCK
from vlm.runners.study.running.locks import held

if TYPE_CHECKING:
    from vlm.runners.study.cells import Cell


def remember(folder: Path, cells: Sequence[Cell]) -> None:
    """Note which cells the study has, beside those that earlier versions of it had."""
    fresh = {c.hash: {"levels": dict(c.levels), "seed": c.seed, "runs": [r.hash for r in c.runs]} for c in cells}
    with held(folder / QUEUE_LOCK):
        known = read_cells(folder)
        if {**known, **fresh} != known:
            replace_text(folder / CELLS, json.dumps({**known, **fresh}, indent=1) + "\n")


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash -> levels, seed and runs; empty if there is no such file."""
    try:
        found = json.loads((folder / CELLS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}
