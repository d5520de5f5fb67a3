"""``vlm weights``: what is in a weight file, delta weights, merging, export to published layouts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.common.logging import say
from vlm.common.registry import register_command

if TYPE_CHECKING:
    from vlm.models.vlm import VLM

EXPORTS = {
    "minigpt": "one .pth file",
    "mmgpt": "one .pt file with LoRA and its settings",
    "lynx": "one .pt file with perceiver, frame positions and adapters",
    "visualcla-delta": "folder with an adapter over the whole model",
    "text-generation-webui": "folder with a text and a vision folder",
}
"""Published layouts."""
HELP = "; ".join(f"{name}: {about}" for name, about in EXPORTS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``show FILE``, ``apply-delta --base B --delta D --target T``, ``merge ...``, ``export SOURCE --to PATH``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|apply-delta|merge|export")
    show = actions.add_parser("show", help="keys, shapes and types; the file is never unpickled")
    show.add_argument("file", type=Path)
    show.add_argument("--section", default=None, help="mapping inside the file, e.g. model (found by itself if that)")
    delta = actions.add_parser("apply-delta", help="base LLM + published delta (Vicuna v0, v1.1) = LLM")
    delta.add_argument("--base", "--base-model-path", required=True, type=Path, help="Hugging Face folder of LLaMA")
    delta.add_argument("--delta", "--delta-path", required=True, type=Path, help="folder of the delta")
    delta.add_argument("--target", "--target-model-path", required=True, type=Path, help="new folder")
    merge = actions.add_parser("merge", help="LLM + CLIP + VisualCLA delta = merged folder in the published layout")
    merge.add_argument("--text-model", "--text_model", required=True, type=Path, help="Hugging Face folder of the LLM")
    merge.add_argument("--vision-model", "--vision_model", required=True, type=Path, help="folder of CLIP ViT-L/14")
    merge.add_argument("--lora-model", "--lora_model", required=True, help="folder of the delta; several with commas")
    merge.add_argument("--output-dir", "--output_dir", default=Path("merged_model"), type=Path, help="new folder")
    merge.add_argument("--dtype", choices=["fp16", "fp32"], default="fp16", help="of the result (published: fp16)")
    merge.add_argument(
        "--shard-gb", type=float, default=4.0, help="largest weight file; memory needed is about as much"
    )
    export = actions.add_parser("export", help="what a run trained, in a published layout")
    export.add_argument("source", type=Path, help="run folder; for text-generation-webui also a folder of a delta")
    export.add_argument("--to", required=True, type=Path, metavar="PATH", help="new .pth file, or folder")
    export.add_argument("--format", choices=list(EXPORTS), default="minigpt", help=HELP)


def main(args: argparse.Namespace) -> int:
    """Run the action.

    Raises:
        WeightsError: no such file, damaged, holding code, or not fitting.
    """
    if args.action == "export":
        return {
            "minigpt": export_run,
            "mmgpt": export_mmgpt_run,
            "lynx": export_lynx_run,
            "visualcla-delta": export_delta_run,
            "text-generation-webui": export_webui_folders,
        }[args.format](args.source, args.to)
    if args.action == "merge":
        return merge_folders(args)
    if args.action == "apply-delta":
        from vlm.systems.minigpt4.vicuna_delta import apply_delta

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
    from vlm.systems.minigpt4.checkpoint import export_published

    return _export_file(run, file, export_published)


def export_mmgpt_run(run: Path, file: Path) -> int:
    """Write the trained parameters of a run folder as a LoRA file of Multimodal-GPT.

    Raises:
        UserError: no run there, a file that exists, or a composition that the layout cannot hold.
    """
    from vlm.systems.mmgpt.checkpoint import export_mmgpt

    return _export_file(run, file, export_mmgpt)


def export_lynx_run(run: Path, file: Path) -> int:
    """Write what a run folder of Lynx holds as a published checkpoint.

    Raises:
        UserError: no run there, a file that exists, or a composition that the layout cannot hold.
    """
    from vlm.systems.lynx.checkpoint import export_lynx

    return _export_file(run, file, export_lynx)


def _export_file(run: Path, file: Path, export: Callable[[VLM, Path], list[str]]) -> int:
    from vlm.common.errors import WeightsError
    from vlm.inference.load import load_parts

    if file.exists():
        raise WeightsError(f"{file} exists", fix="give a new file name")
    model, *_ = load_parts(run, "cpu")
    names = export(model, file)
    say(f"{file}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}")
    return 0


def export_delta_run(run: Path, folder: Path) -> int:
    """Write the trained parameters of a run folder as a delta of VisualCLA.

    Raises:
        UserError: no run there, a folder that exists, or a composition that the layout cannot hold.
    """
    from vlm.common.errors import WeightsError
    from vlm.inference.load import load_parts
    from vlm.systems.visualcla.checkpoint_export import export_delta

    if folder.exists():
        raise WeightsError(f"{folder} exists", fix="give a new folder")
    model, processor, cfg, _ = load_parts(run, "cpu")
    text = cfg.model.text.config
    ids = {token: processor.tokenizer.id_of(token) for token in text.special_tokens}
    added = {token: index for token, index in ids.items() if index is not None}
    names = export_delta(model, folder, Path(text.tokenizer or cfg.model.llm.config.path), added)
    say(f"{folder}: adapter of {len(names)} tensors, configurations and tokenizer")
    return 0


def export_webui_folders(source: Path, folder: Path) -> int:
    """Write a delta of VisualCLA, or what a run of it trained, as the two folders of text-generation-webui.

    Raises:
        UserError: neither a delta nor a run there, or a folder that exists.
    """
    import tempfile

    from vlm.checkpoint.peft_adapter import CONFIG
    from vlm.systems.visualcla.webui import export_webui

    with tempfile.TemporaryDirectory() as work:
        delta = source
        if not (source / CONFIG).is_file():
            delta = Path(work) / source.resolve().name
            export_delta_run(source, delta)
        text, vision = export_webui(delta, folder)
    say(f"{text}\n{vision}")
    return 0


def merge_folders(args: argparse.Namespace) -> int:
    """Merge, and say where.

    Raises:
        WeightsError: see ``merge_visualcla``.
    """
    from vlm.models.precision import parse_dtype
    from vlm.systems.visualcla.merge import merge_visualcla

    deltas = [Path(name.strip()) for name in args.lora_model.split(",")]
    files = merge_visualcla(
        args.text_model,
        args.vision_model,
        deltas,
        args.output_dir,
        dtype=parse_dtype(args.dtype),
        shard_bytes=int(args.shard_gb * 1e9),
    )
    say(f"{args.output_dir}: {len(files)} weight files, configurations, tokenizer and image recipe")
    return 0


@register_command("weights")
class Weights:
    """Show, merge and export weight files.

    examples:
      vlm weights show checkpoint.pth
      vlm weights export output/mine --to mine.pth
    """

    add_arguments = staticmethod(add_arguments)
    main = staticmethod(main)
