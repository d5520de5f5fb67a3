"""``vlm compare``: answers of several models to the same questions, side by side, as one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.cli.options import add_listed
from vlm.common.logging import say
from vlm.common.owned import is_page, write_own
from vlm.common.registry import register_command


@register_command("compare")
class Compare:
    """Write a page with the answers of several models side by side.

    example:
      vlm compare before=a.jsonl after=b.jsonl --media-root images --output compare.html
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Prediction files, images, the page."""
        add_listed(parser, "compare")

    def main(self, args: argparse.Namespace) -> int:
        """Write the page. Raises DataError: a file that cannot be read, or files with different questions."""
        from vlm.pages.compare import page, read_predictions

        named = [split(word) for word in args.files]
        text, lost = page([read_predictions(file, name) for name, file in named], args.media_root, args.title)
        target = write_own(args.output, text, is_page)
        some = f"; {len(lost)} images not found, the first is {lost[0]} (see --media-root)" if lost else ""
        say(f"{target}: {len(named)} prediction file{'s' if len(named) > 1 else ''}{some}")
        return 0


def split(word: str) -> tuple[str, str]:
    """``"NAME=FILE"`` or ``"FILE"`` -> name (empty where none is given), file."""
    name, sign, file = word.partition("=")
    return (name, file) if sign and not Path(word).exists() else ("", word)
