"""``vlm verify``: whether a model computes what it should."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.cli.options import add_listed
from vlm.common.errors import UserError
from vlm.common.logging import busy, quiet, say
from vlm.common.registry import register_command

DIFFERS = 1
"""Exit code if something differs."""


@register_command("verify")
class Verify:
    """Check that a model computes what it should; exit code 1 if it does not.

    With --against transformers, a Hugging Face folder is loaded here and by transformers, one after the other, and
    both answer the same random prompts: token ids, pixels, logits and greedy answers are compared.

    example:
      vlm verify /models/llava-1.5-7b-hf --against transformers
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The model, and what it is compared with."""
        add_listed(parser, "verify")

    def main(self, args: argparse.Namespace) -> int:
        """Compare and report; 0: the same, 1: not. Raises UserError: a model that cannot be loaded."""
        if args.against == "transformers":
            return against_transformers(args)
        raise UserError("nothing to compare with", fix=f"vlm verify {args.source} --against transformers")


def against_transformers(args: argparse.Namespace) -> int:
    """Compare a Hugging Face folder with transformers' own model of it."""
    from vlm.common.dist import pick_device
    from vlm.inference.architectures.against import TOLERANCE, verify
    from vlm.models.published import DTYPES

    device = pick_device(args.device or "auto")
    dtype = next(dtype for dtype, name in DTYPES.items() if name == args.dtype)
    with busy(f"comparing {args.source}"), quiet("vlm.checkpoint"):
        found = verify(Path(args.source), args.number, args.seed, device, dtype)
    for fault in found.faults:
        say(fault)
    say(f"largest difference of logits: {found.logits:.2g} ({args.dtype} on {device}, allowed {TOLERANCE[dtype]:g})")
    say(f"greedy ids: {found.greedy} of {found.prompts} answers are equal")
    same = found.same(TOLERANCE[dtype])
    say(f"{args.source}: {'the same as' if same else 'DIFFERS from'} transformers")
    return 0 if same else DIFFERS
