"""``vlm weights``: what is in a weight file, delta weights, merging, export to published layouts.

Each action is a command of its own, ``weights ACTION``; systems register theirs in their folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.cli.options import add_listed
from vlm.common.logging import say
from vlm.common.registry import register_command, resolve, summaries


@register_command("weights")
class Weights:
    """Show, merge and export weight files.

    examples:
      vlm weights show checkpoint.pth
      vlm weights export output/mine --to mine.pth
      vlm weights export --help
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The actions, each of which is a command with a parser of its own."""
        known = {name.split()[1]: about for name, about in summaries("command").items() if name.startswith("weights ")}
        listed = "\n".join(f"  {name:<12}{about}" for name, about in known.items())
        parser.epilog = f"actions:\n{listed}\n\n{parser.epilog}"
        parser.add_argument("action", choices=list(known), help="see below")

    def main(self, args: argparse.Namespace) -> int:
        """Never reached with an action, which is a command itself."""
        raise NotImplementedError(args.action)


@register_command("weights show")
class Show:
    """Keys, shapes and types; the file is never unpickled.

    example:
      vlm weights show checkpoint.pth
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The file and the mapping inside."""
        add_listed(parser, "weights show")

    def main(self, args: argparse.Namespace) -> int:
        """List the tensors. Raises WeightsError: no such file, damaged, or holding code."""
        from vlm.checkpoint.safe import read_tensors

        tensors = read_tensors(args.file, args.section or "model")
        for name, tensor in tensors.items():
            say(f"{name:<72}{str(tuple(tensor.shape)):<24}{str(tensor.dtype).removeprefix('torch.')}")
        say(f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")
        return 0


@register_command("weights export")
class Export:
    """What a run trained, in a published layout.

    example:
      vlm weights export output/my_run --to mine.pth
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Run, target and layout."""
        listed = "\n".join(f"  {name:<24}{about}" for name, about in summaries("export").items())
        parser.epilog = f"formats:\n{listed}\n\n{parser.epilog}"
        parser.add_argument("source", type=Path, help="run folder, or what else the format can be made of")
        add_listed(parser, "weights export")
        parser.add_argument("--to", required=True, type=Path, metavar="PATH", help="new file or folder")
        parser.add_argument("--format", default="default", metavar="NAME", help="see below")

    def main(self, args: argparse.Namespace) -> int:
        """Write, and report what.

        Raises UserError: no run there, a target that exists, or a composition that the layout cannot hold.
        """
        for line in resolve("export", args.format)().write(args.source, args.to):
            say(line)
        return 0
