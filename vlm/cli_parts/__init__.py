"""Subcommands of the ``vlm`` command that have no package of their own."""
