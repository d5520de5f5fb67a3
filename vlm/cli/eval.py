"""``vlm eval``: score a model on the evaluation datasets of a YAML file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.cli.options import add_listed, source_of
from vlm.common.errors import UserError
from vlm.common.logging import say
from vlm.common.owned import is_table, write_own
from vlm.common.paths import make_folder
from vlm.common.registry import register_command
from vlm.common.trust import trusting

if TYPE_CHECKING:
    from vlm.config.api import Config

log = logging.getLogger(__name__)

KEYS = {"data": "eval_file_path", "media_root": "img_path"}
"""Flag -> key of an entry with original files, where they differ."""


@register_command("eval")
class Eval:
    """Score a model on the evaluation datasets of a YAML file.

    examples:
      vlm eval tiny/eval
      vlm eval output/mine --dataset vqa --images right,wrong,none
      vlm eval compare results/before results/after --output compare_eval.html
      vlm eval leaderboard results
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
        check_flags(args)
        if args.answers:
            return score_answers(args)
        source = source_of(args, "vlm eval tiny/eval")
        if Path(source).is_dir():  # a run folder: its own weights belong to it
            from vlm.inference.load import read_source

            cfg = read_source(source, args.options)
        else:
            cfg = load_config(source, args.options, check="all")
        if args.benchmark:
            use_benchmark(cfg, args)
        if not (cfg.evaluation_datasets or cfg.evaluation_files):
            raise UserError(
                f"{source} has no evaluation_datasets",
                fix="add the section, or use another file, or --benchmark NAME --data FOLDER",
            )
        from vlm.runners.evaluate.run import run_evaluation

        run_evaluation(
            cfg,
            datasets=listed(args.dataset),
            images=listed(args.images),
            output=args.output,
            seeds=numbers_of(args.seeds),
            judge=args.judge,
            allow_random=args.allow_random,
            command=args.words,
            show=say,
        )
        return 0


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a standard benchmark that were given."""
    named = {"protocol": args.protocol, "split": args.split, "limit": args.limit}
    named |= {"shots": args.shots, "shots_path": args.shots_data}
    named |= {"shots_media": args.shots_media, "choose": args.choose}
    return {k: v for k, v in named.items() if v}


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError: a flag of ``--benchmark`` or ``--shots`` without it, which would change nothing."""
    named = {"data": args.data, "media_root": args.media_root} | options_of(args)
    for key in [] if args.benchmark or args.answers else [k for k, v in named.items() if v]:
        flag = "--" + ("shots-data" if key == "shots_path" else key.replace("_", "-"))
        raise UserError(
            f"{flag} is a flag of --benchmark",
            fix=f"name one, or write the option into the YAML file (evaluation_datasets.NAME.{KEYS.get(key, key)})",
        )
    if (args.shots_data or args.shots_media) and not args.shots:
        raise UserError("--shots-data or --shots-media without --shots", fix="e.g. --shots 4")


def use_benchmark(cfg: Config, args: argparse.Namespace) -> None:
    """Make ``--benchmark`` the only entry of ``evaluation_datasets``. Raises UserError: no --data."""
    from vlm.config.api import EvaluationFiles

    options = {"protocol": "official"} | options_of(args)
    files = EvaluationFiles(_data(args), args.media_root, benchmark=args.benchmark, options=options)
    cfg.evaluation_datasets, cfg.evaluation_files = {}, {args.benchmark: files}


def _data(args: argparse.Namespace) -> str:
    if len(args.data) != 1:
        raise UserError("--benchmark needs its files", fix="--data FOLDER, as they are published (and --media-root)")
    return str(args.data[0])


def score_answers(args: argparse.Namespace) -> int:
    """Score answers that somebody wrote. Raises UserError: no benchmark, or files that do not belong together."""
    from vlm.common.registry import resolve
    from vlm.runners.evaluate.run import read_options, table, write_results
    from vlm.tasks.benchmarks.standard.base import StandardBenchmark
    from vlm.tasks.benchmarks.standard.stored import score_file

    if not args.benchmark:
        raise UserError("--answers needs the benchmark", fix="--benchmark NAME --data FOLDER")
    benchmark = resolve("benchmark", args.benchmark)
    if not issubclass(benchmark, StandardBenchmark):
        raise UserError(f"{args.benchmark} reads no original files", fix="vlm eval --predictions FILE --data FILE")
    options = read_options(benchmark, {"protocol": "official"} | options_of(args), {})
    result = score_file(benchmark, _data(args), args.media_root, args.answers, options, args.dataset)
    say(f"{args.benchmark}, {result.scores['protocol']}:{table(result)}")
    if args.output is not None:
        write_results(make_folder(args.output), "evaluation", {args.benchmark: {"right": result}})
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
