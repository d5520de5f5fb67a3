"""Command-line options that the terminal chat and the chat page share."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError

if TYPE_CHECKING:
    import torch


log = logging.getLogger(__name__)

ANSWER_FLAGS: dict[str, tuple[Any, str]] = {
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
    parser.add_argument("--gpus", default=None, metavar="0[,1...]", help="GPUs that may be used; the model lies on one")
    parser.add_argument("--only-cpu", "--only_cpu", action="store_true", help="no GPU, everything in float32")
    parser.add_argument(
        "--load-in-8bit", "--load_in_8bit", action="store_true", help="LLM in 8 bit (GPU and bitsandbytes)"
    )
    group = parser.add_argument_group(
        "the answer (default: as the composition says, else as the published chat, sampled)"
    )
    for name, (kind, about) in ANSWER_FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=about)
    group.add_argument("--greedy", action="store_true", help="always the most likely token, nothing sampled")


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of an answer that ``args`` names, checked.

    Raises:
        UserError: a value outside its range.
    """
    from vlm.inference.generation import CHAT

    changes = {name: value for name in ANSWER_FLAGS if (value := getattr(args, name, None)) is not None}
    if getattr(args, "greedy", False):
        changes["do_sample"] = False
    CHAT.replace(**changes)
    return changes


def options_of(args: argparse.Namespace) -> list[str]:
    """``--options`` with what ``--load-in-8bit`` means added, in the spelling that the options use.

    Raises:
        ConfigError: 8 bit on a CPU, or without bitsandbytes.
    """
    options = list(args.options)
    if not getattr(args, "load_in_8bit", False):
        return options
    from vlm.common.dist import pick_device
    from vlm.models.quantize import check_quantize

    device = device_of(args) or "auto"
    check_quantize("int8", pick_device(device) if isinstance(device, str) else device)
    joined = not options or "=" in options[0]
    return [*options, *(["model.llm.quantize=int8"] if joined else ["model.llm.quantize", "int8"])]


def device_of(args: argparse.Namespace) -> str | torch.device | None:
    """The device that one of the arguments names; None leaves it to the configuration.

    Raises:
        UserError: a GPU that the machine does not have, or arguments that contradict each other.
    """
    device, index = getattr(args, "device", None), getattr(args, "gpu_id", None)
    only_cpu, gpus = getattr(args, "only_cpu", False), getattr(args, "gpus", None)
    if only_cpu and (gpus or device not in (None, "cpu")):
        raise UserError(f"--only-cpu and {f'--gpus {gpus}' if gpus else f'--device {device}'} exclude each other")
    if only_cpu or gpus is not None:
        return _gpu(gpus) if gpus else "cpu"  # published: no number means no GPU
    if device is not None or index is None:
        return device
    from vlm.common.dist import pick_device

    return pick_device("auto", index)


def _gpu(numbers: str) -> torch.device:
    """The first of the GPUs of ``--gpus``; all of them must exist."""
    from vlm.common.dist import gpu

    listed = [n.strip() for n in numbers.split(",")]
    if not all(n.isdecimal() for n in listed):
        raise UserError(f"--gpus {numbers}: expected numbers separated by commas", fix="e.g. --gpus 0")
    result = [gpu(int(n)) for n in listed]
    if len(result) > 1:
        log.warning("--gpus %s: a model lies on one device; %s is used", numbers, result[0])
    return result[0]
