"""The ``vlm`` command: finds the subcommand, parses its arguments, and reports user errors without a traceback."""

from __future__ import annotations

import argparse
import errno
import inspect
import os
import signal
import sys
from collections.abc import Sequence
from typing import Protocol

from vlm.common import VERSION
from vlm.common.errors import UserError, printable
from vlm.common.logging import say, setup_logging
from vlm.common.paths import expand_home
from vlm.common.processes.ending import leave
from vlm.common.processes.threads import wait_passively
from vlm.common.registry import load_plugin, names, resolve, summaries
from vlm.common.trust import trusting

USER_FAULT = 2
"""Exit code after a user's error."""
INTERRUPTED = 128 + signal.SIGINT
UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What the system says of a path that a user names, wherever it is first looked up."""


class Command(Protocol):
    """A subcommand, registered with ``@register_command("name")`` (``"weights name"``: an action of another).

    The first line of its docstring is its line in ``vlm --help``; the rest, with an example, ends its own ``--help``.
    Only the module of the command that runs is imported.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def main(self, args: argparse.Namespace) -> int:
        """Run; the exit code. A ``UserError`` is printed, with exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (0: success, 2: a user's error).

    A command that ran as several processes ends here, see :mod:`vlm.common.processes.ending`.
    """
    wait_passively(os.environ)
    code = 1
    try:
        code = _run(argv)
    finally:
        leave(code, sys.exc_info()[1])
    return code


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        while arguments and arguments[0].partition("=")[0] in ("--plugin", "--plugins"):
            _, joined, modules = arguments[0].partition("=")
            if not joined and len(arguments) == 1:
                break  # argparse says what is missing
            for module in filter(None, (modules if joined else arguments[1]).split(",")):
                load_plugin(module)
            arguments = arguments[1 if joined else 2 :]
        words = 2 if " ".join(arguments[:2]) in names("command") else 1
        name = " ".join(arguments[:words])
        if name not in names("command"):
            _top_parser().parse_args(arguments or ["--help"])
            return USER_FAULT
        command: Command = resolve("command", name)()
        args = parser_of(name, command).parse_args(arguments[words:])
        args = argparse.Namespace(**expand_home(vars(args)), words=["vlm", *arguments])
        setup_logging()
        with trusting(vars(args).get("trust", False)):
            return int(command.main(args) or 0)
    except UserError as error:
        say(f"error: {error}", sys.stderr)
        return USER_FAULT
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in UNUSABLE or error.filename is None:
            raise
        say(f"error: {printable(str(error.filename))[:300]}: {error.strerror}", sys.stderr)
        return USER_FAULT


def parser_of(name: str, command: Command) -> argparse.ArgumentParser:
    """The parser of one command, with its docstring as description and epilog."""
    about, _, rest = (inspect.getdoc(command) or "").partition("\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"vlm {name}", description=about, epilog=rest.strip(), formatter_class=form)
    command.add_arguments(parser)
    return parser


def _top_parser() -> argparse.ArgumentParser:
    known = {name: about for name, about in summaries("command").items() if " " not in name}
    lines = "\n".join(f"  {name:<12}{about}" for name, about in known.items())
    parser = argparse.ArgumentParser(
        prog="vlm",
        allow_abbrev=False,
        description="Compose, train, chat with and serve vision-language models from YAML.",
        epilog=f"commands:\n{lines}\n\nexample:\n  vlm quickstart\n  vlm chat output/quickstart/stage2\n\n"
        "`vlm COMMAND --help` describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vlm {VERSION}")
    parser.add_argument("--plugins", metavar="MODULE[,...]", help="import these modules first; they may add commands")
    parser.add_argument("command", choices=list(known), metavar="COMMAND", help="see below")
    return parser
