"""``vlm weights``: what is in a weight file."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.common.logging import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``show FILE``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="show")
    show = actions.add_parser("show", help="keys, shapes and types; the file is never unpickled")
    show.add_argument("file", type=Path)
    show.add_argument("--section", default=None, help="mapping inside the file, e.g. model (found by itself if that)")


def main(args: argparse.Namespace) -> int:
    """Print one line per tensor and the sum.

    Raises:
        WeightsError: no such file, damaged, or holding code.
    """
    from vlm.checkpoint.safe import read_tensors

    tensors = read_tensors(args.file, args.section or "model")
    for name, tensor in tensors.items():
        say(f"{name:<72}{str(tuple(tensor.shape)):<24}{str(tensor.dtype).removeprefix('torch.')}")
    say(f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")
    return 0
