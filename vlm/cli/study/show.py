"""``vlm study show``."""

from __future__ import annotations

import argparse

from vlm.common.errors import ConfigError, unknown
from vlm.common.logging import say
from vlm.common.owned import is_table, write_own


def main(args: argparse.Namespace) -> int:
    """Print the table of a study, also while it runs.

    Raises UserError: a study that is wrong, no such score or axis, or a file that cannot be written.
    """
    from vlm.runners.study.collect import collect
    from vlm.runners.study.read import build_study
    from vlm.runners.study.report.summary import summarise
    from vlm.runners.study.report.text import as_json, terminal

    study = build_study(args.study, args.options, check="none")
    summary = summarise(study, collect(study), args.score)
    known = [effect.axis for effect in summary.effects]
    if args.by and args.by not in known:
        axes = [axis.name for axis in study.axes]
        if args.by in axes:
            raise ConfigError(f"axis {args.by}: no two of its values have a {summary.measure.name} yet")
        raise ConfigError(unknown("axis", args.by, axes))
    say(terminal(summary, args.by))
    if args.json is not None:
        say(f"{write_own(args.json, as_json(summary), is_table)}: the numbers")
    return 0
