"""``vlm weights``: what is in a weight file, delta weights, merging, export to published layouts.

Each action is a command of its own, ``weights ACTION``; systems register theirs in their folders.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from vlm.cli.options import add_listed
from vlm.common.errors import UserError
from vlm.common.logging import say
from vlm.common.registry import config_class, names, register_command, resolve, summaries


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
        listed = "\n".join(f"  {name:<15}{about}" for name, about in known.items())
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
    """What a run trained, in a published layout or as a folder of another library.

    examples:
      vlm weights export output/my_run --to hf output/my_folder
      vlm weights export output/my_run --to mine.pth
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Run, target, layout, and the options of those that have some."""
        listed = "\n".join(f"  {name:<24}{about}" for name, about in summaries("export").items())
        parser.epilog = f"formats:\n{listed}\n\n{parser.epilog}"
        add_listed(parser, "weights export")

    def main(self, args: argparse.Namespace) -> int:
        """Write, and report what.

        Raises UserError: no run there, a target that exists, or a composition that the layout cannot hold.
        """
        source, target, name = places(args.source, args.target, args.to, args.format)
        given = {key: vars(args)[key] for key in ("dtype", "lora", "form", "base") if vars(args)[key] is not None}
        cls = resolve("export", name)
        options = config_class(cls)
        known = [] if options is None else [field.name for field in dataclasses.fields(options)]
        if foreign := sorted(set(given) - set(known)):
            raise UserError(f"--{foreign[0]}: the format {name} has no such option")
        for line in (cls() if options is None else cls(options(**given))).write(source, target):
            say(line)
        return 0


def places(source: Path | None, target: Path | None, to: list[str], form: str | None) -> tuple[Path, Path, str]:
    """Source, target and format of ``RUN --to FORMAT OUT``, ``RUN --to OUT [--format FORMAT]``, ``RUN OUT ...``.

    Raises UserError: one of them is missing, or too much is given.
    """
    words = list(to)
    if words and (words[0] in names("export") and (len(words) > 1 or target is not None)):
        if form not in (None, words[0]):
            raise UserError(f"--to {words[0]} and --format {form} name two formats", fix="leave one out")
        form = words.pop(0)
    elif form is None and len(words) == 1 and words[0] in names("export"):
        fix = f"--to {words[0]} OUT; a file of that name is --to ./{words[0]}"
        raise UserError(f"--to {words[0]}: the new file or folder is missing", fix=fix)
    if words and target is None:
        target = Path(words.pop(0))
    if words and source is None:
        source = Path(words.pop(0))
    if words:
        raise UserError(f"{words[0]}: not expected after --to", fix="vlm weights export RUN --to FORMAT OUT")
    if source is None or target is None:
        missing = "run folder" if source is None else "name of the new file or folder"
        raise UserError(f"no {missing} is given", fix="vlm weights export RUN --to FORMAT OUT")
    return source, target, form or "default"
