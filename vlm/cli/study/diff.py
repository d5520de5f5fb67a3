"""``vlm study diff``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vlm.common.errors import UserError, nearest
from vlm.common.logging import quiet, say

if TYPE_CHECKING:
    from vlm.runners.study.cells import Cell, Study


def main(args: argparse.Namespace) -> int:
    """Print the values that differ. Raises UserError: a study that is wrong, or no such cell."""
    from vlm.runners.study.read import build_study
    from vlm.runners.study.report.changes import ABSENT, values_of

    with quiet("vlm"):
        study = build_study(args.study, args.options, check="none")
    one, other = (cell_named(study, name) for name in args.cells)
    mine, theirs = values_of(study, one), values_of(study, other)
    for path in dict.fromkeys([*mine, *theirs]):
        a, b = mine.get(path, ABSENT), theirs.get(path, ABSENT)
        if a != b:
            say(f"{path}: {a} -> {b}")
    return 0


def cell_named(study: Study, name: str) -> Cell:
    """The cell of these labels with the first seed, or of this hash. Raises UserError: there is none."""
    for cell in study.cells:
        if name == study.named(cell.key) or (len(name) >= 6 and cell.hash.startswith(name)):
            return cell
    known = list(dict.fromkeys(study.named(cell.key) for cell in study.cells))
    raise UserError(f"{study.source} has no cell {name!r}{nearest(name, known)}")
