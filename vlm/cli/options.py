"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vlm.common.bounds import Count, Natural, Port, Seed, Share
from vlm.common.errors import UserError
from vlm.config.schema import Report, convert, type_name
from vlm.config.tree import parse_file

if TYPE_CHECKING:
    import torch


log = logging.getLogger(__name__)

ANSWER_FLAGS = ("max_new_tokens", "num_beams", "temperature", "top_p", "top_k", "repetition_penalty", "seed")


def ranged(kind: Any) -> Callable[[str], Any]:
    """Type of an argument that is a number; ``kind`` is int, float or one of :mod:`vlm.common.bounds`."""
    number = next(iter(get_args(kind)), kind)

    def read(text: str) -> Any:
        try:
            fits, value = convert(kind, number(text), (), Report())
        except ValueError:
            fits, value = False, None
        if not fits:
            raise argparse.ArgumentTypeError(f"expected {type_name(kind)}, found {text!r}")
        return value

    return read


TYPES = {
    "path": Path,
    **{name: ranged(kind) for name, kind in {"int": int, "float": float, "seed": Seed}.items()},
    **{name: ranged(kind) for name, kind in {"share": Share, "port": Port}.items()},
    **{name: ranged(kind) for name, kind in {"int >= 0": Natural, "int >= 1": Count}.items()},
}
"""Types that ``arguments.yaml`` names."""


def add_listed(parser: argparse._ActionsContainer, *sections: str) -> None:
    """Add the arguments of these sections of ``arguments.yaml``: flags -> keywords of ``add_argument``."""
    listed = _arguments()
    for flags, given in (item for section in sections for item in listed[section].items()):
        kind = {"type": TYPES[given["type"]]} if "type" in given else {}
        parser.add_argument(*flags.split(), **{**given, **kind})


@cache
def _arguments() -> dict[str, Any]:
    return parse_file(Path(__file__).with_name("arguments.yaml")).data


def source_of(args: argparse.Namespace, example: str) -> str:
    """The ``cfg`` or ``--cfg-path`` of a command.

    Raises:
        UserError: not given, or given twice.
    """
    if args.cfg and args.cfg_path:
        raise UserError(f"both {args.cfg} and --cfg-path {args.cfg_path} are given", fix="leave one out")
    if not args.cfg and not args.cfg_path:
        raise UserError("no run folder or configuration named", fix=f"e.g. {example}")
    return str(args.cfg_path or args.cfg)


def with_changes(options: Sequence[str], changes: Mapping[str, str]) -> list[str]:
    """``--options`` and further changes, in the spelling (``KEY=VALUE`` or ``KEY VALUE``) that the options use."""
    joined = not options or "=" in options[0]
    pairs = ([f"{key}={value}"] if joined else [key, value] for key, value in changes.items())
    return [*options, *(item for pair in pairs for item in pair)]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """``--options``, ``--device``/``--gpu-id`` and the options of an answer."""
    add_listed(parser, "options", "model")
    about = "default: as the composition says, else like the published chat"
    add_listed(parser.add_argument_group("answer", about), "answer")


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
    from vlm.models.quantized.llm import check_quantize

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
