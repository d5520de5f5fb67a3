"""``vlm data check``."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

from vlm.cli.data.open import open_view
from vlm.common.errors import DataError
from vlm.common.logging import say
from vlm.common.owned import is_table, write_own


def main(args: argparse.Namespace) -> int:
    """Check every dataset and print the results.

    Raises DataError: a dataset cannot be opened, is empty, or has more bad records than run.max_bad_share.
    """
    from vlm.datasets.inspect.check import check_dataset, open_quarantine
    from vlm.datasets.inspect.report import check_results, report_lines
    from vlm.datasets.loading.cuts import cut_bound

    view = open_view(args)
    run, result, verdicts = view.cfg.run, {}, []
    with contextlib.ExitStack() as stack:
        quarantine = stack.enter_context(open_quarantine(args.out)) if args.out else None
        for opened in view.datasets:
            report = check_dataset(
                opened,
                view.processor,
                view.recipe,
                pixels=args.pixels,
                workers=args.j,
                seed=run.seed,
                limit=args.limit,
                visual_tokens=view.visual_tokens,
                template=view.template,
                packing=run.packing if opened.trained else None,
                quarantine=quarantine,
            )
            result[report.name] = check_results(report, run.group_by_length, run.packing)
            say("\n".join(report_lines(report, result[report.name], args.limit)))
            allowed = cut_bound(run.max_cut_share, view.processor)
            verdicts.append(report.verdict(run.max_bad_share) or report.cuts.verdict(report.name, allowed))
    if args.out:
        text = json.dumps(result, indent=1, ensure_ascii=False)
        write_own(Path(args.out) / "check.json", text + "\n", is_table)
        say(f"written: {args.out}/check.json, {args.out}/quarantine.jsonl")
    faults = [v for v in verdicts if v]
    if faults:
        hint = f"see {args.out}/quarantine.jsonl" if args.out else "list all bad records with --out DIR"
        raise DataError("\n".join(faults), fix=f"repair the data or its build_info; {hint}")
    return 0
