"""``vlm verify``: whether a model computes what it should."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.cli.options import add_listed
from vlm.common.errors import UserError
from vlm.common.logging import busy, quiet, say
from vlm.common.registry import register_command
from vlm.common.trust import trusting

DIFFERS = 1
"""Exit code if something differs."""


@register_command("verify")
class Verify:
    """Check that a model computes what it should; exit code 1 if it does not.

    A run folder has a record of what its model answered to fixed questions at the end of training, and some systems
    ship with one: the questions are asked again, and what changed is named, with the packages that could explain it.

    With --against transformers, a Hugging Face folder is loaded here and by transformers, one after the other, and
    both answer the same random prompts: token ids, pixels, logits and greedy answers are compared.

    examples:
      vlm verify output/my_run
      vlm verify tiny
      vlm verify /models/my-vlm --against transformers
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The model, and what it is compared with."""
        add_listed(parser, "verify", "options")

    def main(self, args: argparse.Namespace) -> int:
        """Compare and report; 0: the same, 1: not. Raises UserError: a model that cannot be loaded."""
        if args.against == "transformers":
            others = {"--record": args.record, "--file": args.file, "--options": args.options}
            if given := [name for name, value in others.items() if value]:
                raise UserError(f"--against and {given[0]} exclude each other: a folder is compared as it is")
            return against_transformers(args)
        return against_record(args)


def against_record(args: argparse.Namespace) -> int:
    """Compare with stored answers, or store them (``--record``)."""
    from vlm.inference.engine import Engine
    from vlm.models.precision import parse_dtype
    from vlm.runners.verify.compare import verify
    from vlm.runners.verify.record import find_records, make_record, read_record, write_record

    pairs = find_records(args.source, args.file)
    if args.record and args.file is None and not Path(args.source).expanduser().exists():
        raise UserError(f"{args.source} is not a run folder, which could hold its record", fix="add --file FILE")
    there = pairs if args.record else [(source, file) for source, file in pairs if file.is_file()]
    if not there:
        raise UserError(
            f"{args.source}: nothing is recorded of it ({pairs[0][1]} is not there)",
            fix="--record stores what it computes now (with --file FILE, if it is not a run folder); --against "
            "transformers compares a Hugging Face folder",
        )
    code = 0
    for source, file in there:
        record = None if args.record else read_record(file)
        dtype = parse_dtype(args.dtype) if args.dtype else None
        with busy(f"asking {source}"), quiet("vlm.checkpoint", "vlm.inference"), trusting(args.trust):
            random = args.allow_random if record is None else bool(record["random"])
            engine = Engine.load(source, args.device, dtype, options=args.options, allow_random=random)
            found = None if record is None else verify(engine, record, file)
            written = write_record(file, make_record(engine, fill=args.allow_random)) if found is None else None
        if found is None:
            say(f"{written}: recorded")
            continue
        for line in found.lines():
            say(line)
        say(f"{source}: {'computes what was recorded' if found.same else 'DIFFERS: ' + found.cause()}")
        code = code if found.same else DIFFERS
    return code


def against_transformers(args: argparse.Namespace) -> int:
    """Compare a Hugging Face folder with transformers' own model of it."""
    from vlm.common.dist import pick_device
    from vlm.inference.architectures.against import TOLERANCE, verify
    from vlm.models.published import DTYPES

    device = pick_device(args.device or "auto")
    dtype = next(dtype for dtype, name in DTYPES.items() if name == (args.dtype or "fp32"))
    with busy(f"comparing {args.source}"), quiet("vlm.checkpoint"):
        found = verify(Path(args.source), args.number, args.seed, device, dtype)
    for fault in found.faults:
        say(fault)
    say(f"largest difference of logits: {found.logits:.2g} ({DTYPES[dtype]} on {device}, allowed {TOLERANCE[dtype]:g})")
    say(f"greedy ids: {found.greedy} of {found.prompts} answers are equal")
    same = found.same(TOLERANCE[dtype])
    say(f"{args.source}: {'the same as' if same else 'DIFFERS from'} transformers")
    return 0 if same else DIFFERS
