"""The ``vlm`` command; one file is one subcommand."""

from vlm.cli.main import main

__all__ = ["main"]
