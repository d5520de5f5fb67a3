"""``vlm study plan``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from vlm.common.errors import UserError
from vlm.common.logging import busy, quiet, say
from vlm.common.owned import is_table, write_own
from vlm.common.text import counted

if TYPE_CHECKING:
    from vlm.runners.study.grid.planning import RunPlan, StudyPlan


def main(args: argparse.Namespace) -> int:
    """Print what every cell needs; 2 if one of them is wrong. Raises UserError: the file, or the device."""
    from vlm.config.schema import ConfigProblems
    from vlm.runners.plan.batch import Lengths
    from vlm.runners.plan.devices import GIB, device_named
    from vlm.runners.plan.plan import ALLOWANCE, Request
    from vlm.runners.study.grid.budget import Measurer
    from vlm.runners.study.grid.build import Builder
    from vlm.runners.study.grid.opened import open_file, study_folder
    from vlm.runners.study.grid.planning import plan_study

    if args.images is not None and args.tokens is None:
        raise UserError("--images goes with --tokens, the text of a sample", fix="e.g. --tokens 256 --images 1")
    lengths = None if args.tokens is None else Lengths(args.tokens, 1 if args.images is None else args.images)
    device = device_named(args.gpu)
    read = open_file(args.study, args.options)
    if read.file.search:
        raise UserError(
            f"{args.study}: a search decides its cells as it goes",
            fix="with --options search=null every combination is planned",
        )
    processes = read.file.processes
    allowance = 0.0 if device.kind == "cpu" else ALLOWANCE
    request = Request(device, processes, lengths, int(allowance * GIB))
    builder = Builder(read, "none", Measurer(processes, lengths, study_folder(read)))
    with busy("planning"), quiet("vlm"):
        found = plan_study(builder, request)
    say("\n".join(lines(found, args.gpus or processes, args.price)))
    if args.json:
        say(f"written: {write_own(args.json, json.dumps(found.as_json(), indent=1) + chr(10), is_table)}")
    if problems := builder.problems():
        say(f"error: {ConfigProblems(args.study, problems)}", sys.stderr)
        return 2
    return 0


def lines(found: StudyPlan, devices: int, price: float | None) -> list[str]:
    """A row for each run of each combination, and the totals."""
    from vlm.runners.plan.show import aligned

    study, seeds = found.study, len(found.study.file.seeds)
    rows = [["cell", "run", "parameters", "trained", "memory", "FLOPs", "steps", "hours"]]
    seen: set[str] = set()
    for cell in found.cells():
        for number, run in enumerate(cell.runs):
            name = study.named(cell.key) if number == 0 else ""
            mark = f"{run.stage} (shared)" if run.hash in seen else run.stage
            rows.append([name, mark, *(numbers(found.runs[run.hash]) if run.hash in found.runs else ["-"] * 6)])
            seen.add(run.hash)
    if len(rows) == 1:
        return [f"{study.source}: no combination can be planned"]
    first = next(iter(found.runs.values()), None)
    where = "" if first is None else f", {first.plan.device}, {first.plan.precision}"
    each = f"{first.plan.processes} process{'es' if first.plan.processes > 1 else ''} a run" if first else ""
    cells = f"{counted(len(found.cells()), 'combination')} x {counted(seeds, 'seed')}"
    head = f"{study.source}: {cells}, {counted(found.count, 'run')}, {each}{where}"
    at_a_time = max(1, devices // (first.plan.processes if first else 1))
    wall = found.total_hours / at_a_time
    used = found.total_hours * (first.plan.processes if first else 1)
    total = f"together {found.total_flops:.3g} FLOPs, {used:,.2f} device hours"
    total += f"; {wall:,.2f} hours with {at_a_time} runs at a time" if at_a_time > 1 else ""
    total += f"; {used * price:,.2f} at {price:g} an hour" if price is not None else ""
    data = [f"  {first.plan.data}; {first.plan.efficiency_from}"] if first else []
    return [head, "", aligned(rows, left=2), "", f"  {total}", *data, "  without the time of evaluations"]


def numbers(run: RunPlan) -> list[str]:
    """Parameters, trained, memory, FLOPs, steps and hours as text."""
    from vlm.runners.plan.show import size

    plan = run.plan
    memory = size(plan.peak) + ("" if plan.fits else f" of {size(plan.capacity)}!")
    total, trained = (sum(getattr(part, key) for part in plan.parts) for key in ("total", "trained"))
    steps = "?" if run.steps is None else f"{run.steps:,}"
    return [f"{total:,}", f"{trained:,}", memory, f"{run.flops:.3g}", steps, f"{run.hours:,.2f}"]
