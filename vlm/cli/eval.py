"""``vlm eval``: score a model on the evaluation datasets of a YAML file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from vlm.cli.options import add_listed, source_of
from vlm.common.errors import UserError
from vlm.common.logging import say
from vlm.common.owned import is_table, write_own
from vlm.common.registry import register_command
from vlm.common.trust import trusting

log = logging.getLogger(__name__)


@register_command("eval")
class Eval:
    """Score a model on the evaluation datasets of a YAML file.

    examples:
      vlm eval tiny/eval
      vlm eval output/mine --dataset vqa --images right,wrong,none
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The configuration and its changes."""
        add_listed(parser, "source", "eval", "options")

    def main(self, args: argparse.Namespace) -> int:
        """Evaluate; the exit code. Raises UserError: anything the user can fix."""
        from vlm.config.api import load_config
        from vlm.tasks.judges import judge_of

        if args.judge:
            with trusting():  # named by the user, not by a file
                judge_of(args.judge)
        if args.predictions:
            return score(args)
        source = source_of(args, "vlm eval tiny/eval")
        if Path(source).is_dir():  # a run folder: its own weights belong to it
            from vlm.inference.load import read_source

            cfg = read_source(source, args.options)
        else:
            cfg = load_config(source, args.options, check="all")
        if cfg.evaluation_files:
            files = f"evaluation_datasets.{', '.join(cfg.evaluation_files)}: no benchmark reads eval_file_path yet"
            fix = "write its questions as an entry with format: table (docs/guides/evaluate.md)"
            if not cfg.evaluation_datasets:
                raise UserError(files, fix=fix)
            log.warning("%s; the other entries are evaluated", files)
        if not cfg.evaluation_datasets:
            raise UserError(f"{source} has no evaluation_datasets", fix="add the section, or use another file")
        from vlm.runners.evaluate.run import run_evaluation

        run_evaluation(
            cfg,
            datasets=listed(args.dataset),
            images=listed(args.images),
            output=args.output,
            seeds=numbers_of(args.seeds),
            judge=args.judge,
            allow_random=args.allow_random,
            show=say,
        )
        return 0


def score(args: argparse.Namespace) -> int:
    """Score finished result files; several are several runs. Raises UserError: unusable files or judge."""
    import json

    from vlm.runners.evaluate.rescore import rescore
    from vlm.runners.evaluate.run import table

    if not args.data:
        raise UserError("--predictions needs the records", fix="--data Open_VQA_images.jsonl")
    result = rescore(args.data, args.predictions, args.judge or "open")
    say(f"{', '.join(args.predictions)}:{table(result)}")
    if args.output is not None:
        write_own(Path(args.output) / "scores.json", json.dumps(result.scores, indent=1) + "\n", is_table)
    return 0


def listed(text: str) -> list[str]:
    """``"a,b"`` -> ``["a", "b"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers_of(text: str) -> list[int]:
    """``"0,1"`` -> ``[0, 1]``. Raises UserError for anything but non-negative integers."""
    strange = [part for part in listed(text) if not part.isdigit()]
    if strange:
        raise UserError(f"--seeds: expected integers >= 0, got {', '.join(strange)}", fix="--seeds 0,1,2")
    return [int(part) for part in listed(text)]
