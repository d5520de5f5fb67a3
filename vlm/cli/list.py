"""``vlm list``: the names that a YAML file can use."""

from __future__ import annotations

import argparse

from vlm.common.logging import say
from vlm.common.registry import FOLDERS, names

FILES = ("arch", "corpus")
"""Kinds that are YAML files, not classes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An optional kind, and plugins to import before."""
    parser.add_argument("kind", nargs="?", choices=sorted({*FOLDERS, *FILES}), metavar="KIND", help="only this kind")
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="import this module first")


def main(args: argparse.Namespace) -> int:
    """Print kind and names, one kind per line (one name per line when a kind was asked for)."""
    from vlm.common.registry import load_plugin
    from vlm.config.composition import archs, corpora

    for module in args.plugin:
        load_plugin(module)
    result = {**{kind: names(kind) for kind in FOLDERS}, "arch": archs(), "corpus": corpora()}
    if args.kind:
        for name in result[args.kind]:
            say(name)
        return 0
    for kind, known in sorted(result.items()):
        if known:
            say(f"{kind:<18}{', '.join(known)}")
    return 0
