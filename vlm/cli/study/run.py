"""``vlm study run``."""

from __future__ import annotations

import argparse


def main(args: argparse.Namespace) -> int:
    """Train and ask whatever is missing; 0: nothing failed, 1: cells failed, 128 + signal: stopped.

    Raises UserError: a study that is wrong, or an optional package that is missing.
    """
    from vlm.runners.study.read import build_study
    from vlm.runners.study.run import run_study

    study = build_study(args.study, args.options, check="all", plan=True, trust=True)
    return run_study(study, workers=args.workers, only=args.only, retry=not args.no_retry).exit_code
