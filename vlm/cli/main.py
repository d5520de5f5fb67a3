"""The ``vlm`` command: finds the subcommand, lets it parse its arguments, turns user errors into one line.

A subcommand is a module with ``add_arguments(parser)`` and ``main(args) -> int``; only the one asked for is imported.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from vlm import __version__
from vlm.common.errors import UserError
from vlm.common.logging import say, setup_logging

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("vlm.cli.quickstart", "train, evaluate and try the embedded tiny model; downloads nothing"),
    "train": ("vlm.cli.train", "train from a YAML file"),
    "chat": ("vlm.cli.chat", "talk to a model in the terminal"),
    "demo": ("vlm.cli.demo", "chat page in the browser"),
    "generate": ("vlm.cli.generate", "answer all records of annotation files"),
    "eval": ("vlm.cli.eval", "score a model on evaluation datasets"),
    "compare": ("vlm.cli.compare", "answers of several models side by side, as a page"),
    "config": ("vlm.cli.config", "show, check or compare configurations"),
    "data": ("vlm.cli.data.command", "list corpora, check datasets, look at samples, write web shards"),
    "weights": ("vlm.cli.weights", "look into weight files"),
    "list": ("vlm.cli.list", "names that a YAML file can use"),
    "doctor": ("vlm.cli.doctor", "versions, devices and folders of this installation"),
}
"""Subcommand -> module, one line of help."""

USER_FAULT = 2
"""Exit code after a user's error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (0 fine, 2 a user's error)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        _top_parser().parse_args(arguments or ["--help"])
        return USER_FAULT
    module_name, about = COMMANDS[name]
    try:
        module = importlib.import_module(module_name)
        parser = argparse.ArgumentParser(prog=f"vlm {name}", description=about)
        module.add_arguments(parser)
        args = parser.parse_args(arguments[1:])
        setup_logging()
        return int(module.main(args) or 0)
    except UserError as error:
        say(f"error: {error}", sys.stderr)
        return USER_FAULT
    except BrokenPipeError:
        return 0


def _top_parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<12}{about}" for name, (_, about) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="vlm",
        description="Compose, train, chat with and serve vision-language models from YAML.",
        epilog=f"commands:\n{lines}\n\n`vlm COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vlm {__version__}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="see below")
    return parser


if __name__ == "__main__":
    sys.exit(main())
