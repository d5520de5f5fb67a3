"""``vlm weights``: what is in a weight file, delta weights, export to published layouts."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.common.logging import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``show FILE``, ``apply-delta --base B --delta D --target T``, ``export RUN_DIR --to FILE``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|apply-delta|export")
    show = actions.add_parser("show", help="keys, shapes and types; the file is never unpickled")
    show.add_argument("file", type=Path)
    show.add_argument("--section", default=None, help="mapping inside the file, e.g. model (found by itself if that)")
    delta = actions.add_parser("apply-delta", help="base LLM + published delta (Vicuna v0, v1.1) = LLM")
    delta.add_argument("--base", "--base-model-path", required=True, type=Path, help="Hugging Face folder of LLaMA")
    delta.add_argument("--delta", "--delta-path", required=True, type=Path, help="folder of the delta")
    delta.add_argument("--target", "--target-model-path", required=True, type=Path, help="new folder")
    export = actions.add_parser("export", help="what a run trained, as a published MiniGPT checkpoint")
    export.add_argument("run", type=Path, metavar="RUN_DIR", help="run folder of a MiniGPT composition")
    export.add_argument("--to", required=True, type=Path, metavar="FILE", help="new .pth file")


def main(args: argparse.Namespace) -> int:
    """Run the action.

    Raises:
        WeightsError: no such file, damaged, holding code, or not fitting.
    """
    if args.action == "export":
        return export_run(args.run, args.to)
    if args.action == "apply-delta":
        from vlm.checkpoint.delta import apply_delta

        files = apply_delta(args.base, args.delta, args.target)
        say(f"{args.target}: {len(files)} weight file{'s' if len(files) > 1 else ''}, config and tokenizer")
        return 0
    from vlm.checkpoint.safe import read_tensors

    tensors = read_tensors(args.file, args.section or "model")
    for name, tensor in tensors.items():
        say(f"{name:<72}{str(tuple(tensor.shape)):<24}{str(tensor.dtype).removeprefix('torch.')}")
    say(f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")
    return 0


def export_run(run: Path, file: Path) -> int:
    """Write the trained parameters of a run folder in the published layout.

    Raises:
        UserError: no run there, a file that exists, or a composition that the published layout cannot hold.
    """
    from vlm.checkpoint.formats.trained import export_published
    from vlm.common.errors import WeightsError
    from vlm.inference.loading import load_parts

    if file.exists():
        raise WeightsError(f"{file} exists", fix="give a new file name")
    model, *_ = load_parts(run, "cpu")
    names = export_published(model, file)
    say(f"{file}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}")
    return 0
