"""Strict copying: every tensor of a file has a place in the model, every required place is filled, shapes agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vlm.common.errors import WeightsError

KEYS_SHOWN = 6
"""Keys listed per kind of problem; the rest is counted."""


@dataclass
class NamedTensors:
    """What a format made of one file."""

    file: str  # name for messages
    tensors: dict[str, Tensor]  # our key -> tensor
    theirs: dict[str, str] = field(default_factory=dict)  # our key -> key in the file, for messages
    unknown: list[str] = field(default_factory=list)  # keys of the file that the format does not declare
    required: Collection[str] = ()  # our keys that this file must fill


def targets(model: nn.Module) -> dict[str, Tensor]:
    """Our keys and tensors: every parameter and persistent buffer."""
    return dict(model.state_dict(keep_vars=True))


def copy_strictly(
    model: nn.Module, placement: NamedTensors, hint: Callable[[Mapping[str, str]], str | None] | None = None
) -> set[str]:
    """Copy the tensors of a file into the model, and return our keys that were filled.

    Args:
        model: the composition.
        placement: what the format made of the file.
        hint: given ``{our key: "file [...], model [...]"}`` of tensors with wrong shapes, may name the cause.

    Raises:
        WeightsError: anything unexpected, missing or of another shape, in one message; nothing is copied then.
    """
    have = targets(model)
    placement = _inside_lora(placement, have)
    strangers = [placement.theirs.get(k, k) for k in placement.tensors if k not in have]
    missing = sorted(set(placement.required) - set(placement.tensors))
    shapes = {
        k: f"file {list(t.shape)}, model {list(have[k].shape)}"
        for k, t in placement.tensors.items()
        if k in have and t.shape != have[k].shape
    }
    misshapen = [f"{placement.theirs.get(k, k)} ({text})" for k, text in shapes.items()]
    found = {"unexpected": placement.unknown + strangers, "missing": missing, "of another shape": misshapen}
    problems = [f"\n  {_listing(what, keys)}" for what, keys in found.items() if keys]
    if problems:
        cause = hint(shapes) if hint is not None else None
        raise WeightsError(f"{placement.file} does not fit this composition:{''.join(problems)}", fix=cause)
    with torch.no_grad():
        for key, tensor in placement.tensors.items():
            have[key].copy_(tensor)
    return set(placement.tensors)


def wrapped_name(key: str) -> str:
    """The name of a parameter after LoRA has wrapped its layer."""
    return ".base_layer.".join(key.rsplit(".", 1))


def _inside_lora(placement: NamedTensors, have: Collection[str]) -> NamedTensors:
    """``placement`` with the names of layers that LoRA wraps changed to those of the wrapped layers."""

    def moved(key: str) -> str:
        inner = wrapped_name(key)
        return inner if key not in have and inner in have else key

    tensors = {moved(key): tensor for key, tensor in placement.tensors.items()}
    return dataclasses.replace(placement, tensors=tensors, theirs={moved(k): v for k, v in placement.theirs.items()})


def _listing(what: str, keys: list[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return f"{len(keys)} {what}: {', '.join(keys[:KEYS_SHOWN])}{more}"
