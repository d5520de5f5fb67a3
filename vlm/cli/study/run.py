"""``vlm study run``."""

from __future__ import annotations

import argparse


def main(args: argparse.Namespace) -> int:
    """Train and ask whatever is missing; 0: nothing failed, 1: cells failed, 128 + signal: stopped.

    Raises UserError: a study that is wrong, or an optional package that is missing.
    """
    from vlm.common.errors import UserError
    from vlm.runners.study.running.child import Children

    children = Children()
    if not args.submit:
        children.warm()
    from vlm.runners.study.run import run_study
    from vlm.runners.study.running.search import open_study
    from vlm.runners.study.submit import submit

    if args.submit:
        if args.only or args.workers != 1:
            raise UserError("--submit sends as many workers as the study says", fix="leave --only and --workers out")
        submit(args.study, args.options, retry=not args.no_retry)
        return 0
    study, space = open_study(args.study, args.options)
    more = {"workers": args.workers, "only": args.only, "retry": not args.no_retry}
    return run_study(study, space=space, execute=children, **more).exit_code
