"""Strict copying: every tensor of a file has a place in the model, every required place is filled, shapes agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vlm.common.errors import WeightsError
from vlm.common.processes.pages import MappedFiles
from vlm.common.processes.shards import fill, own
from vlm.models.quantized.layers import quantised_layers

WRAPPED = ".base_layer."
"""In the name of a parameter whose layer LoRA wraps."""
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
    sources: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    """Our keys whose tensor is only declared (device ``meta``) -> what reads it."""


def targets(model: nn.Module) -> dict[str, Tensor]:
    """Our keys and tensors: every parameter and persistent buffer."""
    return dict(model.state_dict(keep_vars=True))


def copy_strictly(
    model: nn.Module,
    placement: NamedTensors,
    hint: Callable[[Mapping[str, str]], str | None] | None = None,
    *,
    allow_nonfinite: bool = False,
    lent: Mapping[str, Tensor] | None = None,
) -> set[str]:
    """Copy the tensors of a file into the model, and return our keys that were filled.

    Args:
        model: the composition.
        placement: what the format made of the file.
        hint: given ``{our key: "file [...], model [...]"}`` of tensors with wrong shapes, may name the cause.
        allow_nonfinite: take NaN and infinity too.
        lent: tensors of other models that were filled from this file: the model uses their memory where type and
            shape are its own, and nothing is written into memory that it may have of others. None: there are no others.

    Raises:
        WeightsError: anything unexpected, missing, of another shape or kind of numbers, in one message (nothing is
            copied then); or numbers that are not finite in the model's dtype.
    """
    have = targets(model)
    placement = fit_strictly(model, placement, hint)
    quantised = {f"{name}.weight": layer for name, layer in quantised_layers(model).items()}
    files = MappedFiles()
    with torch.no_grad():
        for key, tensor in placement.tensors.items():
            if key in quantised:
                full, layer = placement.sources[key]() if key in placement.sources else tensor, quantised[key]
                if not (layer.kept or allow_nonfinite or is_finite(full)):  # kept weights are not read again
                    raise not_finite(placement.file, placement.theirs.get(key, key), full, full.dtype)
                layer.fill(full)
                files.give_back(full)
                continue
            if lent is not None:
                there = lent.get(key)
                if there is not None and (there.shape, there.dtype) == (have[key].shape, have[key].dtype):
                    have[key].data = there.data
                    continue
                have[key].data = torch.empty_like(have[key])
            tensor = placement.sources[key]() if key in placement.sources else tensor
            fill(have[key], tensor, files.give_back)
            if not (allow_nonfinite or is_finite(own(have[key]))):
                raise not_finite(placement.file, placement.theirs.get(key, key), tensor, have[key].dtype)
    return set(placement.tensors)


def fit_strictly(
    model: nn.Module, placement: NamedTensors, hint: Callable[[Mapping[str, str]], str | None] | None = None
) -> NamedTensors:
    """Check names, shapes and kinds of numbers as :func:`copy_strictly` does; reads no numbers, so ``meta`` will do.

    Returns:
        ``placement``, with the names of layers that LoRA wraps changed to those of the wrapped layers.

    Raises:
        WeightsError: anything unexpected, missing, of another shape or kind of numbers, in one message.
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
    kinds = [
        f"{placement.theirs.get(k, k)} (file {_name(t)}, model {_name(have[k])})"
        for k, t in placement.tensors.items()
        if k in have and t.is_floating_point() != have[k].is_floating_point()
    ]
    found = {
        "unexpected": placement.unknown + strangers,
        "missing": missing,
        "of another shape": misshapen,
        "of another kind (quantised weights cannot be read)": kinds,
    }
    problems = [f"\n  {_listing(what, keys)}" for what, keys in found.items() if keys]
    if problems:
        cause = hint(shapes) if hint is not None else None
        raise WeightsError(f"{placement.file} does not fit this composition:{''.join(problems)}", fix=cause)
    return placement


def check_numbers(placement: NamedTensors, read: Mapping[str, Tensor]) -> None:
    """Raises WeightsError if a format made floating-point numbers of whole ones, as if they were not quantised."""
    for ours, name in placement.theirs.items():
        made = placement.tensors.get(ours)
        if name in read and made is not None and made.is_floating_point() and not read[name].is_floating_point():
            raise WeightsError(f"{placement.file}: {name} is {_name(read[name])}; quantised weights cannot be read")


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; takes no memory of its size."""
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # NaN if there is one
    return bool(torch.isfinite(low) & torch.isfinite(high))


def not_finite(file: str, name: str, tensor: Tensor, dtype: torch.dtype) -> WeightsError:
    """The error about a tensor that is not finite as ``dtype``."""
    if is_finite(tensor):
        return WeightsError(
            f"{file}: {name} has numbers that {str(dtype).removeprefix('torch.')} cannot hold "
            f"(up to {tensor.abs().max().item():.3g})",
            fix="set the part's dtype (precision) to bf16 or fp32",
        )
    count = tensor.numel() - int(torch.isfinite(tensor).sum())
    return WeightsError(
        f"{file}: {name} has {count:,} of {tensor.numel():,} numbers that are NaN or infinite",
        fix="download it again, or use an earlier checkpoint; allow_nonfinite: true in its entry of model.weights "
        "loads it as it is",
    )


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def wrapped_name(key: str) -> str:
    """The name of a parameter after LoRA has wrapped its layer."""
    return WRAPPED.join(key.rsplit(".", 1))


def _inside_lora(placement: NamedTensors, have: Collection[str]) -> NamedTensors:
    """``placement`` with the names of layers that LoRA wraps changed to those of the wrapped layers."""

    def moved(key: str) -> str:
        inner = wrapped_name(key)
        return inner if key not in have and inner in have else key

    tensors = {moved(key): tensor for key, tensor in placement.tensors.items()}
    theirs = {moved(k): v for k, v in placement.theirs.items()}
    sources = {moved(k): v for k, v in placement.sources.items()}
    return dataclasses.replace(placement, tensors=tensors, theirs=theirs, sources=sources)


def _listing(what: str, keys: list[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return f"{len(keys)} {what}: {', '.join(keys[:KEYS_SHOWN])}{more}"
