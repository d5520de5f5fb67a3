"""``vlm data``: corpora and formats; what a configuration's datasets hold, how a model sees it; writing web shards."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from vlm.common.logging import say
from vlm.common.registry import register_command

ACTIONS: dict[str, str] = {
    "list": "shipped corpora with their formats and what they need",
    "show": "samples as the model is trained on them: tokens, what is trained, images",
    "check": "read every record: what cannot be used and why, lengths, padding",
    "shard": "write datasets as web shards",
}


def at_least(least: int) -> Callable[[str], int]:
    """Type of an argument that is a whole number of ``least`` or more."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return int(text)

    return read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``list``, ``show CFG``, ``check CFG``, ``shard CFG OUT``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    result = {name: actions.add_parser(name, help=about, description=about) for name, about in ACTIONS.items()}
    for name in ("show", "check", "shard"):
        result[name].add_argument("cfg", metavar="FILE|RUN_DIR")
    result["shard"].add_argument("out", metavar="OUT", help="folder to write OUT/DATASET/00000.tar ... to")
    for name in ("show", "check", "shard"):
        result[name].add_argument("--only", nargs="+", default=[], metavar="DATASET", help="these datasets only")
        result[name].add_argument(
            "--options", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the configuration"
        )
    for name in ("check", "shard"):
        result[name].add_argument("-j", type=at_least(0), default=0, metavar="N", help="processes (0: this one)")
    show = result["show"]
    show.add_argument("-n", type=at_least(1), default=2, help="samples of each dataset (2)")
    show.add_argument("--seed", type=int, default=None, help="draw samples at random instead of the first ones")
    show.add_argument("--html", metavar="FILE", help="write a page with the images")
    check = result["check"]
    check.add_argument("--pixels", action="store_true", help="decode every image and video too")
    check.add_argument(
        "--limit", type=at_least(1), default=None, metavar="N", help="the first N records of each dataset only"
    )
    check.add_argument("--out", metavar="DIR", help="write quarantine.jsonl and check.json there")
    result["shard"].add_argument(
        "--per-shard", type=at_least(1), default=1000, metavar="N", help="samples of a shard (1000)"
    )


def main(args: argparse.Namespace) -> int:
    """Run the action; the exit code.

    Raises:
        UserError: an unusable configuration or dataset.
    """
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


@register_command("data")
class Data:
    """List corpora, check datasets, show samples, write web shards.

    examples:
      vlm data list
      vlm data show mine.yaml -n 4 --html samples.html
      vlm data check mine.yaml --pixels
    """

    add_arguments = staticmethod(add_arguments)
    main = staticmethod(main)
