"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError

if TYPE_CHECKING:
    import torch


log = logging.getLogger(__name__)

ANSWER_FLAGS: dict[str, tuple[Any, str]] = {
    "max_new_tokens": (int, "longest answer, in tokens"),
    "num_beams": (int, "beams; with more than 1 the answer appears at once, not word by word"),
    "temperature": (float, "sampling: above 1 more varied, below 1 more predictable"),
    "top_p": (float, "sampling: draw from the most likely tokens whose probabilities add up to this"),
    "top_k": (int, "sampling: draw from this many tokens; 0: all"),
    "repetition_penalty": (float, "above 1 discourages repetition"),
    "seed": (int, "same seed, same answer"),
}


def add_source(parser: argparse.ArgumentParser, what: str = "run folder, YAML file, or name such as tiny/eval") -> None:
    """What a command works on: as its argument, or after ``--cfg-path`` as in the published command lines."""
    parser.add_argument("cfg", nargs="?", metavar="RUN_DIR|CFG", help=what)
    parser.add_argument("--cfg-path", default=None, metavar="CFG", help="the same, in the published spelling")


def source_of(args: argparse.Namespace, example: str) -> str:
    """The argument of :func:`add_source`. Raises UserError: not given, or given twice."""
    if args.cfg and args.cfg_path:
        raise UserError(f"both {args.cfg} and --cfg-path {args.cfg_path} are given", fix="leave one out")
    if not args.cfg and not args.cfg_path:
        raise UserError("no run folder or configuration named", fix=f"e.g. {example}")
    return str(args.cfg_path or args.cfg)


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--options``: changes to the configuration."""
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="KEY=VALUE", help="changes, e.g. run.init_lr=1e-4 run.seed=1"
    )


def with_changes(options: Sequence[str], changes: Mapping[str, str]) -> list[str]:
    """``--options`` and further changes, in the spelling (``KEY=VALUE`` or ``KEY VALUE``) that the options use."""
    joined = not options or "=" in options[0]
    pairs = ([f"{key}={value}"] if joined else [key, value] for key, value in changes.items())
    return [*options, *(item for pair in pairs for item in pair)]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """``--options``, ``--device``/``--gpu-id`` and the options of an answer."""
    add_options(parser)
    parser.add_argument("--device", default=None, help="auto (default), cpu, or an accelerator with or without index")
    parser.add_argument("--gpu-id", type=int, default=None, help="index of the accelerator, if the machine has one")
    parser.add_argument("--gpus", default=None, metavar="0[,1...]", help="GPUs that may be used; the first one is used")
    parser.add_argument("--only-cpu", "--only_cpu", action="store_true", help="no GPU, everything in float32")
    parser.add_argument(
        "--load-in-8bit", "--load_in_8bit", action="store_true", help="LLM in 8 bits (needs a GPU and bitsandbytes)"
    )
    group = parser.add_argument_group("answer", "default: as the composition says, else like the published chat")
    for name, (kind, about) in ANSWER_FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=about)
    group.add_argument("--greedy", action="store_true", help="always take the most likely token")


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """The generation options that ``args`` sets, checked. Raises UserError: a value outside its range."""
    from vlm.inference.generation import CHAT

    given = vars(args)
    changes = {name: given[name] for name in ANSWER_FLAGS if given[name] is not None}
    changes |= {"do_sample": False} if args.greedy else {}
    CHAT.replace(**changes)
    return changes


def options_of(args: argparse.Namespace) -> list[str]:
    """``--options``, with what ``--load-in-8bit`` means added.

    Raises ConfigError: 8 bits on a CPU, or without bitsandbytes.
    """
    if not args.load_in_8bit:
        return list(args.options)
    from vlm.common.dist import pick_device
    from vlm.models.quantize import check_quantize

    device = device_of(args) or "auto"
    check_quantize("int8", pick_device(device) if isinstance(device, str) else device)
    return with_changes(args.options, {"model.llm.quantize": "int8"})


def device_of(args: argparse.Namespace) -> str | torch.device | None:
    """The device that the arguments name; None leaves it to the configuration.

    Raises UserError: a GPU that the machine does not have, or arguments that contradict each other.
    """
    if args.only_cpu and (args.gpus or args.device not in (None, "cpu")):
        other = f"--gpus {args.gpus}" if args.gpus else f"--device {args.device}"
        raise UserError(f"--only-cpu and {other} exclude each other")
    if args.only_cpu or args.gpus is not None:
        return _gpu(args.gpus) if args.gpus else "cpu"  # as published: no number means no GPU
    if args.device is not None or args.gpu_id is None:
        return args.device
    from vlm.common.dist import pick_device

    return pick_device("auto", args.gpu_id)


def _gpu(numbers: str) -> torch.device:
    """The first of the GPUs of ``--gpus``; all of them must exist."""
    from vlm.common.dist import gpu

    listed = [n.strip() for n in numbers.split(",")]
    if not all(n.isdecimal() for n in listed):
        raise UserError(f"--gpus {numbers}: expected numbers separated by commas", fix="e.g. --gpus 0")
    result = [gpu(int(n)) for n in listed]
    if len(result) > 1:
        log.warning("--gpus %s: a model runs on one device; %s is used", numbers, result[0])
    return result[0]
