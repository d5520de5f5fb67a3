"""``vlm train``: one training run, alone or under torchrun."""

from __future__ import annotations

import argparse

from vlm.common.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The published arguments, and ``--resume``."""
    parser.add_argument("cfg", nargs="?", metavar="FILE", help="YAML file of the run")
    parser.add_argument("--cfg-path", default=None, metavar="FILE", help="the same, in the published spelling")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the configuration")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        default=None,
        metavar="auto|DIR",
        help="go on from the last checkpoint, or from DIR",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the same folder")


def main(args: argparse.Namespace) -> int:
    """Train; the exit code (128 + signal number when a signal stopped it after saving).

    Raises:
        UserError: anything the user can fix.
    """
    from vlm.config.api import load_config

    source = args.cfg_path or args.cfg
    if source is None:
        raise UserError("no configuration named", fix="give a YAML file, e.g. vlm train my_model.yaml")
    cfg = load_config(source, with_flags(args), check="all")
    from vlm.runners.train.run import run_training

    return run_training(cfg).exit_code


def with_flags(args: argparse.Namespace) -> list[str]:
    """``--options`` with ``--resume`` and ``--overwrite`` added, in the spelling that the options use."""
    flags = {} if args.resume is None else {"run.resume": args.resume}
    flags |= {"run.overwrite": "true"} if args.overwrite else {}
    joined = not args.options or "=" in args.options[0]
    extra = [[f"{key}={value}"] if joined else [key, value] for key, value in flags.items()]
    return [*args.options, *(item for pair in extra for item in pair)]
