"""``vlm demo RUN [RUN ...]`` and ``python demo.py --cfg-path ...``: the chat page."""

from __future__ import annotations

import argparse

from vlm.cli.options import add_listed, add_model_arguments, changes_of, device_of, options_of
from vlm.common.errors import UserError
from vlm.common.registry import register_command
from vlm.serve.gradio.app import PORTS, launch


@register_command("demo")
class Demo:
    """Serve a chat page for the browser.

    examples:
      vlm demo output/quickstart/stage2
      vlm demo output/quickstart/stage1 output/quickstart/stage2
      vlm demo before=output/one after=output/two
      vlm demo tiny/eval --host 0.0.0.0 --port 7860
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The arguments of the chat page."""
        add_listed(parser, "demo")
        parser.add_argument("--port", type=int, default=None, help=f"default: the first free port from {PORTS[0]}")
        add_model_arguments(parser)

    def main(self, args: argparse.Namespace) -> int:
        """Serve the page until it is stopped; the exit code.

        Raises UserError: no model named, an unusable model, or a port in use.
        """
        launch(
            sources_of(args),
            options=options_of(args),
            host=args.host,
            port=args.port,
            share=args.share,
            device=device_of(args),
            generation=changes_of(args),
            stream=not args.no_stream,
            examples=args.examples,
            max_upload=args.max_upload,
            feedback=args.feedback,
            allow_random=args.allow_random,
        )
        return 0


def sources_of(args: argparse.Namespace) -> list[str] | dict[str, str]:
    """The models that the arguments name; a mapping where all have names of their own.

    Raises UserError: none, some with a name and some without, or one name twice.
    """
    given = [*args.cfg, *([args.cfg_path] if args.cfg_path else [])]
    if not given:
        raise UserError("no run folder or configuration named", fix="e.g. vlm demo output/quickstart/stage2")
    named = [item.partition("=") for item in given if "=" in item]
    if not named:
        return given
    if len(named) < len(given) or len({name for name, _, _ in named}) < len(named):
        raise UserError("each model needs a name of its own", fix="e.g. vlm demo before=output/one after=output/two")
    return {name: source for name, _, source in named}
