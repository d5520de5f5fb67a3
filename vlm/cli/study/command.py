"""``vlm study``: check, plan, run, show and report a study; compare two of its cells."""

from __future__ import annotations

import argparse
import importlib

from vlm.cli.options import add_listed
from vlm.common.registry import register_command

ACTIONS: dict[str, tuple[str, str]] = {
    "check": (
        "list every cell with its runs, and what is wrong; exit code 2 if anything is",
        "vlm study check my.yaml",
    ),
    "plan": (
        "parameters, memory, FLOPs, steps and time of every cell and in total, before anything runs",
        "vlm study plan my.yaml --gpu h200 --gpus 8",
    ),
    "diff": ("what differs between the configurations of two cells", "vlm study diff my.yaml linear 'mlp depth=2'"),
    "run": ("train and evaluate what is missing; the same command goes on after a crash", "vlm study run my.yaml"),
    "show": ("the table so far, also while it runs", "vlm study show my.yaml"),
    "report": ("write report.html, report.md and report.tex", "vlm study report my.yaml --output my_report"),
}
"""Action -> help, example."""


@register_command("study")
class StudyCommand:
    """Check, plan and run a study: many runs that differ in named things.

    examples:
      vlm study check studies/tiny_bridges.yaml
      vlm study plan studies/tiny_bridges.yaml
      vlm study run studies/tiny_bridges.yaml --workers 2
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """An action and the study file."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
        for name, (about, example) in ACTIONS.items():
            action = actions.add_parser(name, help=about, description=about, epilog=f"example: {example}")
            add_listed(action, f"study {name}", "options")

    def main(self, args: argparse.Namespace) -> int:
        """Run the action; the exit code. Raises UserError: a study that is wrong."""
        return int(importlib.import_module(f"vlm.cli.study.{args.action}").main(args))
