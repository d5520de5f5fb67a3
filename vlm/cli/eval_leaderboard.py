"""``vlm eval leaderboard``: a page over a folder of evaluation cards."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.cli.options import add_listed
from vlm.common.logging import say
from vlm.common.owned import is_page, write_own
from vlm.common.registry import register_command


@register_command("eval leaderboard")
class EvalLeaderboard:
    """Write a page with models by benchmarks from the evaluation cards in a folder.

    example:
      vlm eval leaderboard results --output results/leaderboard.html
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The folder, the page."""
        add_listed(parser, "eval leaderboard")

    def main(self, args: argparse.Namespace) -> int:
        """Read the cards and write the page. Raises DataError: no such folder."""
        from vlm.pages.leaderboard import page
        from vlm.runners.evaluate.results.leaderboard import board, read_cards

        cards, faults = read_cards(args.folder)
        found = board(cards, Path(args.output), faults)
        target = write_own(args.output, page(found, args.title), is_page)
        some = f"; {len(faults)} could not be used, the first: {faults[0]}" if faults else ""
        say(f"{target}: {len(found.rows)} models, {len(found.columns)} benchmarks, from {len(cards)} cards{some}")
        return 0
