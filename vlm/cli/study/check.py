"""``vlm study check``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from vlm.common.logging import busy, quiet, say
from vlm.common.text import counted

if TYPE_CHECKING:
    from vlm.runners.study.cells import Study
    from vlm.runners.study.grid.build import Builder


def main(args: argparse.Namespace) -> int:
    """List the cells; 2 if one of them, or the file, is wrong. Raises UserError: the file cannot be read at all."""
    from vlm.config.schema import ConfigProblems
    from vlm.runners.study.grid.build import Builder
    from vlm.runners.study.grid.opened import open_file
    from vlm.runners.study.running.asking import faults_of

    builder = Builder(open_file(args.study, args.options), "all", fits=True)
    with busy("checking"), quiet("vlm"):
        study = builder.examine()
        problems = builder.problems()
        problems += faults_of(study, builder.sample.runs[-1].config) if builder.sample else []
    say("\n".join(lines(study, builder)))
    if problems:
        say(f"error: {ConfigProblems(args.study, problems)}", sys.stderr)
        return 2
    return 0


def lines(study: Study, builder: Builder) -> list[str]:
    """The cells with the runs of their first seed, and how many there are."""
    seeds = len(study.file.seeds)
    keys = list(dict.fromkeys([*(cell.key for cell in study.cells), *builder.faults]))
    first = {cell.key: cell for cell in reversed(study.cells)}
    width = max((len(study.named(key)) for key in keys), default=0)
    rows = []
    for key in keys:
        star = "*" if key == study.reference else " "
        runs = ", ".join(f"{run.stage} {run.hash}" for run in first[key].runs) if key in first else "wrong, see below"
        rows.append(f"{star} {study.named(key):<{width}}  {runs}")
    count = len({run.hash for cell in study.cells for run in cell.runs})
    if study.file.search:
        axes = ", ".join(f"{axis.name} ({len(axis.levels)})" for axis in study.axes)
        return [f"{study.source}: a search of {counted(study.file.search.trials, 'trial')} over {axes}"]
    bad = len(builder.faults)
    wrong = f", {bad} of the combinations {'is' if bad == 1 else 'are'} wrong" if bad else ""
    head = (
        f"{study.source}: {counted(len(keys), 'combination')} x {counted(seeds, 'seed')} = "
        f"{counted(len(keys) * seeds, 'cell')}, {counted(count, 'run')}{wrong}"
    )
    alike: dict[str, list[str]] = {}
    for key in filter(first.__contains__, keys):
        alike.setdefault(first[key].hash, []).append(study.named(key))
    rows += [f"the same run, since nothing in it differs: {'; '.join(names)}" for names in alike.values() if names[1:]]
    return [head, *rows, "* the reference; hashes of the first seed"]
