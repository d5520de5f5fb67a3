"""``vlm train``: one training run, alone or under torchrun."""

from __future__ import annotations

import argparse

from vlm.cli.options import add_listed, source_of, with_changes
from vlm.common.registry import register_command


@register_command("train")
class Train:
    """Train a model as a YAML file says.

    examples:
      vlm train tiny/stage1_pretrain --options run.init_lr=1e-4
      vlm train mine.yaml --resume
      torchrun --nproc-per-node 8 -m vlm.cli train mine.yaml
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The published arguments, ``--resume`` and ``--overwrite``."""
        add_listed(parser, "train", "options")

    def main(self, args: argparse.Namespace) -> int:
        """Train; the exit code (128 + signal number when a signal stopped it after saving).

        Raises UserError: anything the user can fix.
        """
        from vlm.config.api import load_config

        source = source_of(args, "vlm train tiny/stage1_pretrain")
        cfg = load_config(source, with_flags(args), check="all", train=True, trust=True)
        from vlm.runners.train.run import run_training

        return run_training(cfg).exit_code


def with_flags(args: argparse.Namespace) -> list[str]:
    """``--options`` with what ``--resume`` and ``--overwrite`` mean."""
    flags = {} if args.resume is None else {"run.resume": args.resume}
    flags |= {"run.overwrite": "true"} if args.overwrite else {}
    return with_changes(args.options, flags)
