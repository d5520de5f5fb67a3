"""``vlm generate``: answers to all records of annotation files, from a composition or a published LYNX.yaml."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vlm.cli.options import add_model_arguments, changes_of, device_of, options_of
from vlm.common.logging import busy, quiet, say
from vlm.common.registry import register_command

GENERATION_FLAGS: dict[str, tuple[Any, str]] = {
    "min_length": (int, "shortest answer, counted with one position before it: 2 demands one token"),
    "no_repeat_ngram_size": (int, "no run of so many tokens twice; 0: off"),
    "length_penalty": (float, "beams: sum of log probabilities / length ** this; below 0 short answers win"),
    "length_penalty_form": (str, "what length counts besides the answer: published (one token), prompt, or answer"),
}
BATCH = 16
SEED = 42
"""Published by Lynx; the same answers every time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, records, prompt, answer and result."""
    parser.add_argument(
        "cfg", nargs="?", metavar="FILE|RUN_DIR", help="YAML file or run folder of the model, or a merged VisualCLA"
    )
    parser.add_argument("--cfg-path", default=None, help="the same, in the published spelling")
    parser.add_argument("--config", default=None, metavar="LYNX.yaml", help="a published Lynx file, instead")
    parser.add_argument("--checkpoint", default=None, help="with --config: instead of the checkpoint that it names")
    parser.add_argument(
        "--data", nargs="+", default=None, metavar="FILE", help="annotation files (default: LYNX.yaml's)"
    )
    parser.add_argument(
        "--prompt", default=None, help="text with {fields} of a record (default '{question}', LYNX.yaml's)"
    )
    parser.add_argument(
        "--raw-prompt", action="store_true", help="the prompt is all the model sees, no template around"
    )
    parser.add_argument(
        "--media-field", default=None, metavar="NAME", help="field with the image or video (image or video)"
    )
    parser.add_argument("--media-root", default=".", metavar="DIR", help="folder that paths start from (this one)")
    parser.add_argument("--index-field", default="index", metavar="NAME", help="field that names a record (index)")
    parser.add_argument("--copy", nargs="+", default=[], metavar="NAME", help="fields to copy into the result")
    parser.add_argument(
        "--answer-field", default="", metavar="NAME", help="result: the records, with the answer in this field"
    )
    parser.add_argument(
        "--output", "--output_path", required=True, metavar="FILE", help="result, JSON lines; FILE.json: an array"
    )
    parser.add_argument("--overwrite", action="store_true", help="write anew whatever is there")
    parser.add_argument(
        "--batch-size", type=int, default=None, help=f"records that run together ({BATCH}, LYNX.yaml's)"
    )
    add_model_arguments(parser)
    for name, (kind, about) in GENERATION_FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=about)
    parser.add_argument("--sample", action="store_true", help="draw answers instead of taking the best")


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
    config, request, generation, batch_size = _published(args) if args.config else _composed(args)
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


def _published(args: argparse.Namespace) -> tuple[Any, Any, Any, int]:
    """Composition, request, options of an answer and batch size of a published file."""
    from vlm.common.errors import ConfigError
    from vlm.inference.generation import CHAT
    from vlm.runners.evaluate.generate import Request
    from vlm.systems.lynx.published_config import read_lynx_yaml

    if args.cfg or args.cfg_path:
        raise ConfigError("--config names a published file and --cfg-path a composition; give one")
    options = [*options_of(args), *([f"model.checkpoint={args.checkpoint}"] if args.checkpoint else [])]
    asked = read_lynx_yaml(args.config, options)
    request = Request(
        files=args.data or asked.files,
        prompt=asked.prompt if args.prompt is None else args.prompt,
        raw=True,
        media_field=args.media_field or asked.media_field,
        media_root=args.media_root,
        index_field=args.index_field,
        copy=args.copy,
        answer_field=args.answer_field,
        lemmatize=asked.lemmatize,
    )
    generation = CHAT.replace(**asked.generation, seed=SEED)
    return asked.config, request, generation, args.batch_size or asked.batch_size


def _composed(args: argparse.Namespace) -> tuple[Any, Any, Any, int]:
    """The same of a YAML file of ours or a run folder."""
    from vlm.common.errors import ConfigError
    from vlm.inference.load import read_source
    from vlm.runners.evaluate.generate import Request

    source = args.cfg_path or args.cfg
    if source is None:
        raise ConfigError("no model named", fix="vlm generate my_model.yaml --data questions.jsonl --output out.jsonl")
    if args.checkpoint:
        raise ConfigError("--checkpoint goes with --config", fix="--options model.checkpoint=FILE, or model.ckpt=FILE")
    if not args.data:
        raise ConfigError("no records named", fix="--data questions.jsonl")
    config = read_source(source, options_of(args))
    request = Request(
        files=args.data,
        prompt="{question}" if args.prompt is None else args.prompt,
        raw=args.raw_prompt,
        media_field=args.media_field or "",
        media_root=args.media_root,
        index_field=args.index_field,
        copy=args.copy,
        answer_field=args.answer_field,
    )
    from vlm.inference.generation import default_generation

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
