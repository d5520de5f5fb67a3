"""``vlm data``: list corpora, recognise files, show and check the datasets of a configuration, write web shards."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from vlm.cli.options import add_listed
from vlm.common.logging import say
from vlm.common.registry import register_command
from vlm.config.tree import parse_file

ACTIONS: dict[str, tuple[str, str]] = {
    "list": ("list the shipped corpora with their formats and what they need", "vlm data list"),
    "detect": (
        "say which layout a file of training data has, write the entry that reads it, show three samples",
        "vlm data detect mine.json --images images",
    ),
    "show": (
        "show samples as the model is trained on them: tokens, targets, images",
        "vlm data show mine.yaml -n 4 --html samples.html",
    ),
    "check": (
        "read every record; report unusable ones, lengths and padding",
        "vlm data check mine.yaml --pixels -j 8 --out report",
    ),
    "shard": ("write datasets as web shards", "vlm data shard mine.yaml shards -j 8"),
}
"""Action -> help, example."""


@register_command("data")
class Data:
    """List corpora, recognise files, check datasets, show samples, write web shards.

    examples:
      vlm data list
      vlm data detect mine.json
      vlm data show mine.yaml -n 4 --html samples.html
      vlm data check mine.yaml --pixels
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """``list``, ``detect FILE``, ``show CFG``, ``check CFG``, ``shard CFG OUT``."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
        for name, (about, example) in ACTIONS.items():
            action = actions.add_parser(name, help=about, description=about, epilog=f"example: {example}")
            if name != "list":
                add_listed(action, f"data {name}", *(["options"] if name != "detect" else []))

    def main(self, args: argparse.Namespace) -> int:
        """Run the action; the exit code.

        Raises:
            UserError: an invalid configuration or dataset.
        """
        from vlm.config.composition import corpora, corpus_file

        if args.action != "list":
            return int(importlib.import_module(f"vlm.cli.data.{args.action}").main(args))
        for name in corpora():
            file = corpus_file(name)
            data: dict[str, Any] = parse_file(file).data if file else {}
            say(f"{name:<24}{data.get('format', ''):<20}{data.get('help', '')}")
        return 0
