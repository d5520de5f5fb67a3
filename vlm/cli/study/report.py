"""``vlm study report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.common.logging import busy, say
from vlm.common.owned import is_page, write_own


def main(args: argparse.Namespace) -> int:
    """Write report.html, report.md and report.tex.

    Raises UserError: a study that is wrong, no such score, or a file that cannot be written.
    """
    from vlm.runners.study.collect import collect
    from vlm.runners.study.read import build_study
    from vlm.runners.study.report.html import report_page
    from vlm.runners.study.report.media import media_roots
    from vlm.runners.study.report.summary import summarise
    from vlm.runners.study.report.text import FORMATS, written_by_us

    with busy("reading the study"):
        study = build_study(args.study, args.options, check="none")
        results = collect(study)
        summary = summarise(study, results, args.score)
        roots = media_roots(study, results, args.media_root)
        files = {"report.html": (report_page(summary, roots), is_page)}
        files |= {name: (write(summary), written_by_us) for name, write in FORMATS.items()}
    folder = Path(args.output or study.folder)
    for name, (text, ours) in files.items():
        say(f"{write_own(folder / name, text, ours)}: {len(text.encode()) / 1000:,.0f} kB")
    return 0
