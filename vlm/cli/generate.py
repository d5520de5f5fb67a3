"""``vlm generate``: answers to all records of annotation files, from any model or a published evaluation file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.cli.options import add_model_arguments, changes_of, device_of, options_of
from vlm.common.errors import ConfigError
from vlm.common.logging import busy, quiet, say
from vlm.common.registry import register_command

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.inference.generation import Generation
    from vlm.runners.evaluate.generate import Request

GENERATION_FLAGS: dict[str, tuple[Any, str]] = {
    "min_length": (int, "shortest answer, BOS position included: 2 means at least one token"),
    "no_repeat_ngram_size": (int, "no sequence of this many tokens occurs twice; 0: off"),
    "length_penalty": (
        float,
        "beams: score = sum of log probabilities / length ** this; below 0 prefers short answers",
    ),
    "length_penalty_form": (
        str,
        "what length counts besides the answer: published (one token), prompt, or answer (nothing)",
    ),
}
BATCH = 16
"""Records answered together unless a file or flag says otherwise."""
SEED = 42
"""Seed of sampled answers unless a file or flag gives one (the published evaluation's), so that runs agree."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, records, prompt, answer and result."""
    parser.add_argument(
        "cfg", nargs="?", metavar="FILE|RUN_DIR", help="YAML file, run folder, or published folder or file of a model"
    )
    parser.add_argument("--cfg-path", default=None, help="the same, in the published spelling")
    parser.add_argument("--config", default=None, metavar="FILE", help="a published file with questions of its own")
    parser.add_argument("--checkpoint", default=None, help="with --config: replaces the checkpoint that it names")
    parser.add_argument(
        "--data", nargs="+", default=None, metavar="FILE", help="annotation files (default: those of --config)"
    )
    parser.add_argument(
        "--prompt", default=None, help="text with {fields} of a record (default: '{question}', or --config's)"
    )
    parser.add_argument(
        "--raw-prompt", action="store_true", help="the prompt is all that the model sees, without the template"
    )
    parser.add_argument(
        "--media-field", default=None, metavar="NAME", help="field with the image or video (default: image, else video)"
    )
    parser.add_argument(
        "--media-root", default=".", metavar="DIR", help="folder that paths start from (default: the working folder)"
    )
    parser.add_argument(
        "--index-field", default="index", metavar="NAME", help="field that names a record (default: index)"
    )
    parser.add_argument("--copy", nargs="+", default=[], metavar="NAME", help="fields to copy into the result")
    parser.add_argument(
        "--answer-field", default="", metavar="NAME", help="the result is the records, with the answer in this field"
    )
    parser.add_argument(
        "--output", "--output_path", required=True, metavar="FILE", help="result, JSON lines; FILE.json: an array"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--batch-size", type=int, default=None, help=f"records that run together (default: {BATCH}, or --config's)"
    )
    add_model_arguments(parser)
    for name, (kind, about) in GENERATION_FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=about)
    parser.add_argument("--sample", action="store_true", help="sample answers instead of taking the most likely")


def main(args: argparse.Namespace) -> int:
    """Answer; the exit code.

    Raises:
        UserError: anything the user can fix.
    """
    from vlm.common import dist
    from vlm.runners.evaluate.generate import Questions, lemmatizer, run_generate

    changes = changes_of(args) | {
        name: value for name in GENERATION_FLAGS if (value := getattr(args, name)) is not None
    }
    changes |= {"do_sample": True} if args.sample else {}
    config, request, generation, batch_size = request_of(args)
    generation = generation.replace(**changes)
    questions = Questions(request)  # before the model is loaded, which may take minutes
    if request.lemmatize:
        lemmatizer()
    output = Path(args.output)
    with busy("loading the model"), quiet("vlm.checkpoint"):
        from vlm.inference.engine import Engine

        device = device_of(args)
        _, where = dist.init(device if isinstance(device, str) else config.run.device)
        engine = Engine.load(config, where if device is None or isinstance(device, str) else device)
    try:
        run_generate(engine, questions, output, generation, batch_size=batch_size, overwrite=args.overwrite)
        if dist.is_main():
            say(f"{output}: {len(questions)} answers")
    finally:
        dist.destroy()
    return 0


def request_of(args: argparse.Namespace) -> tuple[Config, Request, Generation, int]:
    """Composition, records and prompt, options of an answer, and batch size.

    A published file that asks questions of its own says them all; for a composition or a run folder the flags do.

    Raises:
        UserError: flags that contradict each other, no model or no records, or an unusable configuration.
    """
    from vlm.inference.generation import CHAT, default_generation
    from vlm.inference.load import AsksQuestions, find_source, read_source
    from vlm.runners.evaluate.generate import Request

    ours = args.cfg_path or args.cfg
    if args.config and ours:
        raise ConfigError("--config names a published file and --cfg-path a composition; give one")
    path = args.config or ours
    if path is None:
        raise ConfigError("no model named", fix="vlm generate my_model.yaml --data questions.jsonl --output out.jsonl")
    kind = find_source(Path(path).expanduser())
    options = [*options_of(args), *([f"model.checkpoint={args.checkpoint}"] if args.checkpoint else [])]
    record: dict[str, Any] = {name: getattr(args, name) for name in ("media_root", "index_field", "copy")}
    record["answer_field"] = args.answer_field
    if isinstance(kind, AsksQuestions):
        asked = kind.questions(Path(path), options)
        prompt = asked.prompt if args.prompt is None else args.prompt
        field = args.media_field or asked.media_field
        record |= {"raw": True, "lemmatize": asked.lemmatize}
        request = Request(args.data or asked.files, prompt, media_field=field, **record)
        generation = CHAT.replace(**asked.generation, seed=SEED)
        return asked.config, request, generation, args.batch_size or asked.batch_size
    if args.config:
        raise ConfigError(f"{path} is not a published file with questions of its own", fix=f"use --cfg-path {path}")
    if args.checkpoint:
        raise ConfigError("--checkpoint goes with --config", fix="--options model.checkpoint=FILE, or model.ckpt=FILE")
    if not args.data:
        raise ConfigError("no records named", fix="--data questions.jsonl")
    config = read_source(path, options)
    prompt = "{question}" if args.prompt is None else args.prompt
    request = Request(args.data, prompt, raw=args.raw_prompt, media_field=args.media_field or "", **record)
    generation = default_generation(config)
    if generation.seed is None:
        generation = generation.replace(seed=SEED)
    return config, request, generation, args.batch_size or BATCH


@register_command("generate")
class Generate:
    """Answer every record of annotation files.

    example:
      vlm generate output/mine --data questions.jsonl --media-root images --output answers.jsonl
    """

    add_arguments = staticmethod(add_arguments)
    main = staticmethod(main)
