"""``vlm weights``: what is in a weight file, delta weights, merging, export to published layouts.

Each action is a command of its own, registered as ``weights NAME``: here, in a system's folder, or by a plugin.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.common.logging import say
from vlm.common.registry import load_entry_points, names, register_command, resolve, summary

ACTIONS = "weights "
"""First word of the registered names of the actions."""


class ActionParser(argparse.ArgumentParser):
    """Parser of one action. It adds its arguments when it is used, so that listing the actions imports none of them."""

    command = ""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As the base class, with the arguments of ``command``."""
        action = resolve("command", self.command)()
        action.add_arguments(self)
        self.set_defaults(run=action.main)
        return super().parse_known_args(args, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command for each registered action."""
    load_entry_points()
    known = [name for name in names("command") if name.startswith(ACTIONS)]
    listed = "|".join(name.removeprefix(ACTIONS) for name in known)
    actions = parser.add_subparsers(dest="action", required=True, metavar=listed, parser_class=ActionParser)
    for name in known:
        actions.add_parser(name.removeprefix(ACTIONS), help=summary("command", name)).command = name


def main(args: argparse.Namespace) -> int:
    """Run the action.

    Raises:
        WeightsError: no such file, damaged, holding code, or not fitting.
    """
    return int(args.run(args))


@register_command("weights show")
class Show:
    """keys, shapes and types; the file is never unpickled"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The file and the mapping inside."""
        parser.add_argument("file", type=Path)
        parser.add_argument("--section", default=None, help="mapping inside the file (default: model, if there is one)")

    def main(self, args: argparse.Namespace) -> int:
        """List the tensors."""
        from vlm.checkpoint.safe import read_tensors

        tensors = read_tensors(args.file, args.section or "model")
        for name, tensor in tensors.items():
            say(f"{name:<72}{str(tuple(tensor.shape)):<24}{str(tensor.dtype).removeprefix('torch.')}")
        say(f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")
        return 0


@register_command("weights export")
class Export:
    """what a run trained, in a published layout"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Run, target and layout."""
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = "formats:\n" + "\n".join(f"  {name:<24}{summary('export', name)}" for name in names("export"))
        parser.epilog += "\n\nexample: vlm weights export output/my_run --to mine.pth"
        parser.add_argument("source", type=Path, help="run folder, or what else the format can be made of")
        parser.add_argument("--to", required=True, type=Path, metavar="PATH", help="new file or folder")
        parser.add_argument("--format", default="default", metavar="NAME", help="see below")

    def main(self, args: argparse.Namespace) -> int:
        """Write, and say what."""
        for line in resolve("export", args.format)().write(args.source, args.to):
            say(line)
        return 0
