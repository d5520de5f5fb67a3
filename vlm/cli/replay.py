"""``vlm replay``: what a run saw and computed at a step, or its worst steps."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.cli.options import add_listed
from vlm.common.errors import UserError, printable
from vlm.common.logging import busy, say
from vlm.common.owned import is_page, is_table, refuse_foreign_file, write_own
from vlm.common.registry import register_command

if TYPE_CHECKING:
    from vlm.runners.replay.record import Replay
    from vlm.runners.replay.spikes import WorstStep

LISTED = 8
"""Samples in the terminal's table."""
NAMED = 4
"""Samples of a step that the table of steps names."""
PAGE = "replay.html"


@register_command("replay")
class ReplayCommand:
    """Look at a training step again: its samples, the loss of each token, the gradient.

    The step is computed as the run did: from the checkpoint before it the run is trained again in memory up to the
    step; nothing is written but the page. On the same machine the loss is that of the log bit for bit.

    examples:
      vlm replay output/mine --spikes
      vlm replay output/mine --step 1234 --output step.html --json step.json
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The run, the step or the number of worst steps, and where to write."""
        add_listed(parser, "replay", "options")

    def main(self, args: argparse.Namespace) -> int:
        """Compute and write. Raises UserError: no such run or step, or what the run needs is gone."""
        if (args.step is None) == (args.spikes is None):
            raise UserError("name either --step N or --spikes", fix=f"vlm replay {args.run} --spikes")
        if args.spikes is not None and (args.rank is not None or args.weights != "exact"):
            raise UserError("--spikes reads the log only: --rank and --weights are for --step")
        for file, ours in ((args.output, is_page), (args.json, is_table)):
            if file:
                refuse_foreign_file(file, ours)
        return spikes(args) if args.step is None else step(args)


def step(args: argparse.Namespace) -> int:
    """``--step``."""
    from vlm.pages.replay import step_page
    from vlm.runners.replay.run import replay

    given: dict[str, Any] = {"rank": args.rank, "weights": args.weights, "device": args.device, "options": args.options}
    with busy(f"step {args.step}"):
        found = replay(args.run, args.step, **given)
    for line in lines(found):
        say(line)
    title = f"Step {found.step} of {Path(found.run).resolve().name}"
    say(f"written: {write_own(args.output or PAGE, step_page(title, facts(found), samples(found)), is_page)}")
    if args.json:
        say(f"written: {write_own(args.json, found.to_json(), is_table)}")
    return 0


def lines(found: Replay) -> list[str]:
    """What the terminal shows of a step."""
    again = f", {found.trained} steps trained again" if found.trained else ""
    shown = "" if found.rank is None else f", shown: process {found.rank} of {found.processes}"
    result = [
        f"step {found.step} of {found.run} (from {found.start}{again}{shown})",
        f"loss           {found.loss}",
        f"gradient norm  {found.grad_norm}",
        f"  by part      {', '.join(f'{part} {norm:.4g}' for part, norm in found.parts.items())}",
        f"{found.counts['samples']} samples, {found.counts['targets']} trained tokens",
    ]
    if not (found.loss.equal and found.grad_norm.equal):
        result += [f"  may differ because {reason}" for reason in found.reasons]
    rows = [("loss", "tokens", "sample", "dataset", "process", "batch")]
    for batch, sample in found.samples[:LISTED]:
        row = (
            f"{sample.loss:.4f}",
            str(sample.targets),
            sample.name,
            sample.dataset,
            str(batch.rank),
            str(batch.number),
        )
        rows.append(row)
    result += table(rows, right=2)
    left = len(found.samples) - LISTED
    return [*result, *([f"  and {left} more"] if left > 0 else [])]


def table(rows: Sequence[tuple[str, ...]], right: int = 0) -> list[str]:
    """Rows in columns, the first ``right`` of them aligned to the right; names cannot move the cursor."""
    rows = [tuple(" ".join(printable(cell).split("\n")) for cell in row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if number < right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def facts(found: Replay) -> dict[str, Any]:
    """What the page says of the step as a whole."""
    equal = found.loss.equal and found.grad_norm.equal
    status = "not in the log" if equal is None else "equal to the log bit for bit" if equal else "differs from the log"
    again = f"; {found.trained} steps were trained again" if found.trained else ""
    whose = "" if found.rank is None else f"; samples of process {found.rank} of {found.processes}"
    return {
        "state": "" if equal is None else "finished" if equal else "stopped",
        "status": status,
        "sub": f"{found.run}, from {found.start}{again}{whose}",
        "tiles": [
            ("loss", f"{found.loss.replayed:.4g}"),
            ("norm of the gradient", f"{found.grad_norm.replayed:.4g}"),
            ("samples", f"{found.counts['samples']:,}"),
            ("trained tokens", f"{found.counts['targets']:,}"),
        ],
        "notes": [] if equal else [f"This replay may differ because {reason}." for reason in found.reasons],
        "parts": found.parts,
        "numbers": [
            (
                name,
                "" if number.logged is None else repr(number.logged),
                repr(number.replayed),
                "" if number.difference is None else "none" if number.equal else f"{number.difference:.3g}",
            )
            for name, number in (("loss", found.loss), ("gradient norm", found.grad_norm))
        ],
    }


def samples(found: Replay) -> list[dict[str, Any]]:
    """What the page says of each sample, by falling loss."""
    finite = math.isfinite(found.loss_sum) and found.loss_sum > 0
    return [
        {
            **{key: vars(sample)[key] for key in ("name", "dataset", "record", "media", "targets", "images", "tokens")},
            "loss": sample.loss,
            "share": sample.loss_sum / found.loss_sum if finite else None,
            "place": f"{f'process {batch.rank}, ' if found.processes > 1 else ''}micro-batch {batch.number}",
        }
        for batch, sample in found.samples
    ]


def spikes(args: argparse.Namespace) -> int:
    """``--spikes``."""
    from vlm.pages.replay import spikes_page
    from vlm.runners.replay.found import find_run
    from vlm.runners.replay.spikes import limits_of, to_json, worst_steps

    run = find_run(args.run)
    found = worst_steps(run, args.spikes)
    limits, above = limits_of(run.dir), [w.step for w in found if w.above]
    head = ("step", "loss", "grad norm", "deviations", "of", "median", "replay trains", "samples")
    rows = [cells(worst) for worst in found]
    sub = (
        f"{run.dir.path}: {len(run.records)} steps; {len(above)} of those below are more than {limits.deviations:g} "
        f"deviations above the median of the {limits.window} before"
    )
    say(sub)
    for line in table([head, *rows], right=4):
        say(line)
    command = f"vlm replay {args.run} --step {found[0].step}"
    say(f"look at one: {command}")
    if args.output:
        points = {k: [(r["step"], r[k]) for r in run.records if math.isfinite(r[k])] for k in ("loss", "grad_norm")}
        title = f"Worst steps of {run.dir.path.resolve().name}"
        shown = {"steps": above, "head": head, "rows": rows, "command": command}
        text = spikes_page(title, sub, points["loss"], points["grad_norm"], **shown)
        say(f"written: {write_own(args.output, text, is_page)}")
    if args.json:
        say(f"written: {write_own(args.json, to_json(run, found), is_table)}")
    return 0


def cells(worst: WorstStep) -> tuple[str, ...]:
    """A row of the table of steps."""
    more = f" and {len(worst.samples) - NAMED} more" if len(worst.samples) > NAMED else ""
    cost = "no checkpoint" if worst.trained is None else f"{worst.trained} steps"
    return (
        f"{worst.step}{' skipped' if worst.skipped else ''}",
        f"{worst.loss:.4g}",
        f"{worst.grad_norm:.4g}",
        f"{worst.score:.1f}{' *' if worst.above else '  '}",
        worst.quantity,
        f"{worst.median:.4g}",
        cost,
        ", ".join(worst.samples[:NAMED]) + more,
    )
