"""``vlm plan``: what a run will need, before anything is loaded; or what it needed, beside what was predicted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.cli.options import add_listed, source_of
from vlm.common.errors import UserError
from vlm.common.logging import busy, quiet, say
from vlm.common.owned import is_table, write_own
from vlm.common.registry import register_command

if TYPE_CHECKING:
    from vlm.runners.plan.plan import Plan, Request


@register_command("plan")
class PlanCommand:
    """Say whether a run fits, how long it takes, and what saves most; nothing is loaded.

    examples:
      vlm plan mine.yaml --gpu a100-80 --gpu 4090
      vlm plan mine.yaml --gpu h200 --gpus 8 --solve batch_size
      vlm plan tiny/stage1_pretrain --tokens 64 --images 1 --gpu 4090
      vlm plan output/mine                # predicted against measured
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What is planned, for which devices, what is solved for."""
        add_listed(parser, "source", "plan", "options")

    def main(self, args: argparse.Namespace) -> int:
        """Print the plan; 0 also where it does not fit.

        Raises UserError: anything the user can fix.
        """
        source = source_of(args, "vlm plan mine.yaml --gpu a100-80 (the file before --gpu)")
        from vlm.runners.plan.sources import load_for_plan

        cfg = load_for_plan(source, args.options)
        if (Path(source) / "log.jsonl").is_file() and not args.gpu:
            return compare_run(cfg, Path(source), args.json)
        requests = [request_of(args, name) for name in args.gpu or ["cpu"]]
        with busy("planning"), quiet("vlm"):
            plans = [solved(cfg, request, args.solve) for request in requests]
        from vlm.runners.plan.show import knobs_table, text_of

        say(text_of(plans, source))
        data: dict[str, Any] = {"source": source, "plans": [plan.as_json() for plan in plans]}
        for plan, request, entry in zip(plans, requests, data["plans"], strict=True):
            if args.solve:
                say(f"\nsolved for {plan.device}: {args.solve}={solution(plan, args.solve)}")
            elif not plan.fits or args.knobs:
                from vlm.runners.plan.knobs import turn

                with busy("planning changes"), quiet("vlm"):
                    knobs = turn(cfg, request, plan)
                say("\n" + knobs_table(plan, knobs))
                entry["knobs"] = [vars(knob) for knob in knobs]
        write_json(args.json, data)
        return 0


def solution(plan: Plan, what: str) -> Any:
    """The value that was found."""
    return plan.batch_size if what == "batch_size" else plan.settings["shard"]


def request_of(args: argparse.Namespace, name: str) -> Request:
    """Where to plan. Raises UserError: an unknown device, or lengths that say nothing."""
    from vlm.runners.plan.batch import Lengths
    from vlm.runners.plan.devices import GIB, device_named
    from vlm.runners.plan.plan import ALLOWANCE, Request

    if args.images is not None and args.tokens is None:
        raise UserError("--images goes with --tokens, the text of a sample", fix="e.g. --tokens 256 --images 1")
    images = 1 if args.images is None else args.images
    lengths = None if args.tokens is None else Lengths(args.tokens, images)
    device = device_named(name)
    processes = args.nodes * args.gpus
    default = 0.0 if device.kind == "cpu" else ALLOWANCE
    given = default if args.allowance is None else args.allowance
    return Request(device, processes, lengths, int(given * GIB), args.price)


def solved(cfg: Any, request: Request, what: str | None) -> Plan:
    """The plan, with the largest batch or the least sharding that fits if that is asked for."""
    from vlm.runners.plan.knobs import solve_batch_size, solve_shard
    from vlm.runners.plan.plan import Planner

    if what == "shard":
        return solve_shard(cfg, request)
    planner = Planner(cfg, request)
    return solve_batch_size(planner) if what == "batch_size" else planner.plan()


def compare_run(cfg: Any, folder: Path, file: str | None) -> int:
    """Predicted against measured, of a run that has been."""
    from vlm.runners.plan.devices import calibration_file
    from vlm.runners.plan.measured import compare, request_of
    from vlm.runners.plan.show import comparison_table

    device, request = request_of(folder)
    with busy("planning"), quiet("vlm"):
        found = compare(cfg, folder, device, request)
    say(comparison_table(found))
    if found.kept is not None:
        say(f"  kept in {calibration_file()}")
    lines = [{**vars(line), "ratio": line.ratio} for line in found.lines]
    write_json(file, {"source": str(folder), "plan": found.plan.as_json(), "lines": lines, "reached": found.reached})
    return 0


def write_json(file: str | None, data: dict[str, Any]) -> None:
    """Write ``--json``, if it is given. Raises UserError: the file is not one of ours, or cannot be written."""
    if file is not None:
        say(f"written: {write_own(file, json.dumps(data, indent=1) + chr(10), is_table)}")
