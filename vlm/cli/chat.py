"""``vlm chat``: chat with a model in the terminal, or ask once from a script."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.cli.options import add_listed, add_model_arguments, changes_of, device_of, options_of, source_of
from vlm.common.errors import UserError
from vlm.common.logging import busy, quiet
from vlm.common.registry import register_command
from vlm.common.types import Video
from vlm.serve.terminal.inline import Inline
from vlm.serve.terminal.talk import once, talk


@register_command("chat")
class Chat:
    """Chat with a model in the terminal, or ask once from a script.

    examples:
      vlm chat output/quickstart/stage2
      vlm chat tiny/eval --image cat.jpg --ask "What is in the image?" --greedy
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The arguments of ``vlm chat``."""
        add_listed(parser, "source", "chat")
        add_model_arguments(parser)

    def main(self, args: argparse.Namespace) -> int:
        """Run ``vlm chat``; the exit code. Raises UserError: an unusable model, image or question."""
        source = source_of(args, "vlm chat output/quickstart/stage2")
        changes, device, options = changes_of(args), device_of(args), options_of(args)
        absent = [("image", path) for path in args.image if not Path(path).is_file()]
        absent += [("video", path) for path in args.video if not Path(path).exists()]
        for kind, path in absent:  # before the model is loaded, which may take minutes
            raise UserError(f"{kind} {path}: no such file", fix=f"check the path after --{kind}")
        media = [*args.image, *map(Video, args.video)]
        with busy(f"loading {source}"), quiet("vlm.checkpoint"):
            from vlm.inference.engine import Engine
            from vlm.inference.few_shot import read_examples
            from vlm.inference.generation import default_generation
            from vlm.inference.session import ChatSession

            examples = read_examples(args.shots) if args.shots else []
            engine = Engine.load(source, device, options=options, allow_random=args.allow_random)
        session = ChatSession(engine, default_generation(engine.config).replace(**changes), examples)
        if args.ask:
            return once(session, args.ask, media)
        return talk(session, media, inline=Inline(args.inline), history=not args.no_history, speed=not args.no_speed)
