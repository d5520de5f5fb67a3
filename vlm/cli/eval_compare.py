"""``vlm eval compare``: two evaluations over the same questions, with intervals and a permutation test."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vlm.cli.compare import split
from vlm.cli.options import add_listed
from vlm.common.logging import say
from vlm.common.owned import is_page, is_table, write_own
from vlm.common.registry import register_command


@register_command("eval compare")
class EvalCompare:
    """Say whether two evaluations over the same questions differ, and on which questions.

    example:
      vlm eval compare before=results/stage1 after=results/stage2 --media-root images --output compare_eval.html
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The two runs, images, the page, the numbers as JSON."""
        add_listed(parser, "eval compare")

    def main(self, args: argparse.Namespace) -> int:
        """Compare, print, and write what was asked for. Raises DataError: runs that cannot be compared."""
        from vlm.cli.eval import listed
        from vlm.runners.evaluate.results.compare import compare_runs, table
        from vlm.runners.evaluate.results.compare_page import compare_page
        from vlm.runners.evaluate.results.stored_run import read_run

        (one, first), (two, second) = (split(word) for word in (args.first, args.second))
        a, b = read_run(first, one), read_run(second, two)
        if a.name == b.name:
            a.name, b.name = f"{a.name} (a)", f"{b.name} (b)"
        found = compare_runs(a, b, listed(args.dataset))
        say(table(a, b, found))
        if args.json is not None:
            stored = {"a": {"name": a.name, "file": str(a.file)}, "b": {"name": b.name, "file": str(b.file)}}
            text = json.dumps({**stored, "datasets": [one.stored() for one in found]}, indent=1)
            say(f"{write_own(Path(args.json), text + chr(10), is_table)}: the numbers")
        if args.output is not None:
            shown = compare_page(a, b, found, args.media_root)
            lost = shown.missing if args.media_root else []
            some = f"; {len(lost)} images not found, the first is {lost[0]} (see --media-root)" if lost else ""
            say(f"{write_own(args.output, shown.text, is_page)}{some}")
        return 0
