"""Command-line options that the terminal chat and the chat page share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vlm.common.config import Config
    from vlm.inference.generation import Generation

FLAGS: dict[str, tuple[Any, str]] = {
    "max_new_tokens": (int, "longest answer, in tokens"),
    "num_beams": (int, "beams; above 1 the answer appears at once, not word by word"),
    "temperature": (float, "sampling: above 1 bolder, below 1 safer"),
    "top_p": (float, "sampling: draw from the most likely tokens that together have this probability"),
    "top_k": (int, "sampling: draw from so many tokens; 0: all"),
    "repetition_penalty": (float, "above 1 discourages repeating"),
    "seed": (int, "same seed, same answer"),
}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """``--options``, ``--device``/``--gpu-id`` and the options of an answer."""
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the configuration")
    parser.add_argument("--device", default=None, help="auto (default), cpu, or an accelerator with or without index")
    parser.add_argument("--gpu-id", type=int, default=None, help="index of the accelerator, if the machine has one")
    group = parser.add_argument_group(
        "the answer (default: as the composition says, else as the published chat, sampled)"
    )
    for name, (kind, about) in FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=about)
    group.add_argument("--greedy", action="store_true", help="always the most likely token, nothing sampled")


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of an answer that ``args`` names, checked.

    Raises:
        UserError: a value outside its range.
    """
    from vlm.inference.generation import CHAT

    changes = {name: value for name in FLAGS if (value := getattr(args, name, None)) is not None}
    if getattr(args, "greedy", False):
        changes["do_sample"] = False
    CHAT.but(**changes)
    return changes


def usual(cfg: Config | None) -> Generation:
    """How a model answers if nothing is asked for: as its composition says, else as MiniGPT-4's published chat."""
    from vlm.inference.generation import CHAT

    return CHAT if cfg is None else CHAT.but(**cfg.model.generation)


def device_of(args: argparse.Namespace) -> str | torch.device | None:
    """The device that ``--device`` or the published ``--gpu-id`` names; None leaves it to the configuration."""
    device, index = getattr(args, "device", None), getattr(args, "gpu_id", None)
    if device is not None or index is None:
        return device
    from vlm.common.dist import pick_device

    return pick_device("auto", index)
