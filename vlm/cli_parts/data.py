"""``vlm data``: corpora and formats, and samples of a configuration's datasets as text."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import Any

from vlm.common.errors import UserError
from vlm.common.logging import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``list``, ``show CFG``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show")
    actions.add_parser("list", help="shipped corpora with their formats and what they need")
    show = actions.add_parser("show", help="the first samples of each dataset of a configuration")
    show.add_argument("cfg", metavar="FILE|RUN_DIR")
    show.add_argument("-n", type=int, default=2, help="samples of each dataset (2)")
    show.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the configuration")


def main(args: argparse.Namespace) -> int:
    """Run the action; the exit code.

    Raises:
        UserError: an unusable configuration or dataset.
    """
    return list_corpora() if args.action == "list" else show_samples(args)


def list_corpora() -> int:
    """Print name, format and help of every shipped corpus."""
    from vlm.common.config_merge import corpora, corpus_file
    from vlm.common.config_tree import parse_file

    for name in corpora():
        file = corpus_file(name)
        data: dict[str, Any] = parse_file(file).data if file else {}
        say(f"{name:<24}{data.get('format', ''):<20}{data.get('help', '')}")
    return 0


def show_samples(args: argparse.Namespace) -> int:
    """Print the first samples of each dataset, role by role.

    Raises:
        UserError: the configuration has no dataset.
    """
    from vlm.common.config import load_config
    from vlm.common.registry import resolve

    cfg = load_config(args.cfg, args.options, check="all")
    sections = {**cfg.datasets, **cfg.valid_datasets, **cfg.evaluation_datasets}
    if not sections:
        raise UserError(f"{args.cfg} names no dataset")
    for name, entry in sections.items():
        dataset = resolve("dataset", entry.format.name)(entry.format.config)
        size = f", {len(dataset)} samples" if hasattr(dataset, "__len__") else ""
        say(f"{name} ({entry.format.name}{size})")
        for sample in islice(samples(dataset), args.n):
            say(f"  {sample.id}")
            for message in sample.messages:
                say(f"    {message.role}: {' '.join(shown(part)[:200] for part in message.parts)}")
    return 0


def shown(part: Any) -> str:
    """A part of a message as text: quoted text, a picture's path, or its kind and size when it comes from a shard."""
    if hasattr(part, "text"):
        return repr(part.text)
    kind = type(part).__name__.lower()
    if isinstance(part.source, bytes | bytearray):
        return f"<{kind}, {len(part.source) / 1024:.1f} KiB>"
    return f"<{kind} {part.source}>"


def samples(dataset: Any) -> Any:
    """Samples of a map-style or streamed dataset, in order."""
    if hasattr(dataset, "__getitem__"):
        return (dataset[i] for i in range(len(dataset)))
    return (dataset.decode(record) for record in dataset.records(None))
