"""``vlm data``: list corpora, show and check the datasets of a configuration, write web shards."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from vlm.cli.options import add_options
from vlm.common.logging import say
from vlm.common.registry import register_command

ACTIONS: dict[str, tuple[str, str]] = {
    "list": ("list the shipped corpora with their formats and what they need", "vlm data list"),
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


def at_least(least: int) -> Callable[[str], int]:
    """Type of an argument that is an integer of at least ``least``."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {text!r}")
        return int(text)

    return read


@register_command("data")
class Data:
    """List corpora, check datasets, show samples, write web shards.

    examples:
      vlm data list
      vlm data show mine.yaml -n 4 --html samples.html
      vlm data check mine.yaml --pixels
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """``list``, ``show CFG``, ``check CFG``, ``shard CFG OUT``."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
        result = {
            name: actions.add_parser(name, help=about, description=about, epilog=f"example: {example}")
            for name, (about, example) in ACTIONS.items()
        }
        for name in ("show", "check", "shard"):
            result[name].add_argument("cfg", metavar="FILE|RUN_DIR", help="YAML file or run folder")
            result[name].add_argument("--only", nargs="+", default=[], metavar="DATASET", help="only these datasets")
            add_options(result[name])
        for name in ("check", "shard"):
            result[name].add_argument("-j", type=at_least(0), default=0, metavar="N", help="worker processes")
        result["shard"].add_argument("out", metavar="OUT", help="output folder, for OUT/DATASET/00000.tar ...")
        show = result["show"]
        show.add_argument("-n", type=at_least(1), default=2, help="samples of each dataset (default 2)")
        show.add_argument("--seed", type=int, default=None, help="show random samples instead of the first ones")
        show.add_argument("--html", metavar="FILE", help="write an HTML page with the images")
        check = result["check"]
        check.add_argument("--pixels", action="store_true", help="also decode every image and video")
        check.add_argument("--limit", type=at_least(1), metavar="N", help="only the first N records of each dataset")
        check.add_argument("--out", metavar="DIR", help="folder for quarantine.jsonl and check.json")
        result["shard"].add_argument(
            "--per-shard", type=at_least(1), default=1000, metavar="N", help="samples of a shard (default 1000)"
        )

    def main(self, args: argparse.Namespace) -> int:
        """Run the action; the exit code. Raises UserError: an invalid configuration or dataset."""
        if args.action == "list":
            return list_corpora()
        return int(importlib.import_module(f"vlm.cli.data.{args.action}").main(args))


def list_corpora() -> int:
    """Print name, format and help of every shipped corpus."""
    from vlm.config.composition import corpora, corpus_file
    from vlm.config.tree import parse_file

    for name in corpora():
        file = corpus_file(name)
        data: dict[str, Any] = parse_file(file).data if file else {}
        say(f"{name:<24}{data.get('format', ''):<20}{data.get('help', '')}")
    return 0
