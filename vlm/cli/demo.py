"""The chat page: ``vlm demo``, and ``python demo.py --cfg-path ...``."""

from __future__ import annotations

import argparse

from vlm.cli.options import add_model_arguments, changes_of, device_of, options_of
from vlm.common.errors import UserError
from vlm.serve.gradio.app import PORTS, launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the chat page."""
    parser.add_argument("model", nargs="?", metavar="RUN_DIR|CFG", help="run folder, YAML file, or published folder")
    parser.add_argument("--cfg-path", default=None, help="the same, in the published spelling")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: everybody in the network")
    parser.add_argument("--port", type=int, default=None, help=f"default: the first free one from {PORTS[0]}")
    parser.add_argument("--share", action="store_true", help="also make a public link through gradio's servers")
    parser.add_argument("--no-stream", "--no_stream", action="store_true", help="show an answer when it is complete")
    parser.add_argument("--examples", default=None, metavar="FILE", help="to click: JSON Lines with {image, question}")
    add_model_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Run the page until it is stopped; the exit code.

    Raises:
        UserError: no model named, an unusable model, or a port in use.
    """
    source = args.cfg_path or args.model
    if source is None:
        raise UserError("no model named", fix="give a run folder or a YAML file, e.g. --cfg-path eval_configs/x.yaml")
    launch(
        source,
        options=options_of(args),
        host=args.host,
        port=args.port,
        share=args.share,
        device=device_of(args),
        generation=changes_of(args),
        stream=not args.no_stream,
        examples=args.examples,
    )
    return 0
