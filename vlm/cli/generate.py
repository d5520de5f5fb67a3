"""``vlm generate``: answers to all records of annotation files, from any model or a published evaluation file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.cli.options import add_listed, add_model_arguments, changes_of, device_of, options_of
from vlm.common.errors import ConfigError
from vlm.common.logging import busy, quiet, say
from vlm.common.registry import register_command

if TYPE_CHECKING:
    from vlm.inference.generation import Generation
    from vlm.inference.load import Questions
    from vlm.runners.evaluate.generate import Request

GENERATION_FLAGS = ("min_length", "no_repeat_ngram_size", "length_penalty", "length_penalty_form")
SEED = 42
"""Seed of sampled answers unless a file or flag gives one (the published evaluation's), so that runs agree."""


@register_command("generate")
class Generate:
    """Answer every record of annotation files.

    example:
      vlm generate output/mine --data questions.jsonl --media-root images --output answers.jsonl
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Model, records, prompt, answer and result."""
        add_listed(parser, "generate")
        add_model_arguments(parser)
        add_listed(parser, "generate answers")

    def main(self, args: argparse.Namespace) -> int:
        """Answer; the exit code. Raises UserError: anything the user can fix."""
        from vlm.runners.evaluate.generate import Request

        changes = changes_of(args) | {
            name: v for name, v in vars(args).items() if name in GENERATION_FLAGS and v is not None
        }
        changes |= {"do_sample": True} if args.sample else {}
        asked = questions_of(args)
        request = Request(
            files=args.data or asked.files,
            prompt=asked.prompt if args.prompt is None else args.prompt,
            raw=asked.raw,
            media_field=args.media_field or asked.media_field,
            media_root=args.media_root,
            index_field=args.index_field,
            copy=args.copy,
            answer_field=args.answer_field,
            lemmatize=asked.lemmatize,
        )
        seed = SEED if asked.generation.seed is None else asked.generation.seed
        generation = asked.generation.replace(**{"seed": seed} | changes)
        if args.ray:
            return _on_ray(args, asked, request, generation)
        if args.ray_actors is not None or args.ray_gpus is not None:
            raise ConfigError("--ray-actors and --ray-gpus go with --ray", fix="add --ray auto")
        return _here(args, asked, request, generation)


def _here(args: argparse.Namespace, asked: Questions, request: Request, generation: Generation) -> int:
    """Answer in this process, or in those of torchrun."""
    from vlm.common import dist
    from vlm.runners.evaluate.generate import Records, lemmatizer, run_generate

    records = Records(request, args.max_bad_share)  # before the model is loaded, which may take minutes
    if request.lemmatize:
        lemmatizer()
    output = Path(args.output)
    with busy("loading the model"), quiet("vlm.checkpoint"):
        from vlm.inference.engine import Engine

        device = device_of(args)
        _, where = dist.init(device if isinstance(device, str) else asked.config.run.device)
        where = where if device is None or isinstance(device, str) else device
        engine = Engine.load(asked.config, where, allow_random=args.allow_random)
    try:
        size = args.batch_size or asked.batch_size
        bad = run_generate(engine, records, output, generation, batch_size=size, overwrite=args.overwrite)
        if dist.is_main():
            _report(str(output), len(records), len(bad), next(iter(bad.values()), ""))
    finally:
        dist.destroy()
    return 0


def _on_ray(args: argparse.Namespace, asked: Questions, request: Request, generation: Generation) -> int:
    """Answer by actors of Ray."""
    from vlm.runners.evaluate.on_ray import run_on_ray

    device = device_of(args)
    count, bad, reason = run_on_ray(
        asked.config,
        request,
        args.output,
        generation,
        address=args.ray,
        actors=args.ray_actors or 1,
        gpus=args.ray_gpus or 0.0,
        batch_size=args.batch_size or asked.batch_size,
        max_bad_share=args.max_bad_share,
        overwrite=args.overwrite,
        device=None if device is None else str(device),
        allow_random=args.allow_random,
    )
    _report(args.output, count, bad, reason)
    return 0


def _report(output: str, count: int, bad: int, reason: str) -> None:
    say(f"{output}: {count - bad} answers")
    if bad:
        say(f"{bad} of {count} records could not be used, e.g. {reason}")
        say("mend them and run the same command again: only what has no answer yet is asked")


def questions_of(args: argparse.Namespace) -> Questions:
    """The model of the arguments, with the questions that its file states, if it does.

    Raises UserError: arguments that contradict each other, no model, or an unusable configuration.
    """
    from vlm.inference.generation import default_generation
    from vlm.inference.load import Questions, find_source, read_source

    ours = args.cfg_path or args.cfg
    if args.config and ours:
        raise ConfigError("--config names a published file and --cfg-path a composition; give one")
    if not (args.config or ours):
        raise ConfigError("no model named", fix="vlm generate my_model.yaml --data questions.jsonl --output out.jsonl")
    path = Path(args.config or ours).expanduser()
    options = [*options_of(args), *([f"model.checkpoint={args.checkpoint}"] if args.checkpoint else [])]
    source = find_source(path)
    published = source.questions(path, options) if source is not None else None
    if published is not None:
        return published
    if args.config:
        raise ConfigError(f"{path} is not a published file with questions of its own", fix=f"use --cfg-path {path}")
    if args.checkpoint:
        raise ConfigError("--checkpoint goes with --config", fix="--options model.checkpoint=FILE, or model.ckpt=FILE")
    if not args.data:
        raise ConfigError("no records named", fix="--data questions.jsonl")
    config = read_source(path, options)
    return Questions(config, default_generation(config), raw=args.raw_prompt)
