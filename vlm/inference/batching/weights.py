"""Whether the weights of a model are still those that something was computed with."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn

from vlm.models.lora import lora_state


def weights_stamp(model: nn.Module) -> Hashable:
    """A value that differs after weights were replaced, moved or written in place, or LoRA was merged or switched.

    It reads no weights: torch counts what is written into a parameter. What is written through ``.data`` into the same
    memory is not counted.
    """
    found: list[Hashable] = []
    waiting = [model]
    while waiting:  # as ``model.modules()``, in a fifth of the time
        layer = waiting.pop()
        if layer._modules:
            waiting += [child for child in layer._modules.values() if child is not None]
            if "lora_A" in layer._modules:
                found.append(lora_state(layer))
        found += [_stamp(parameter) for parameter in layer._parameters.values() if parameter is not None]
    return tuple(found)


def _stamp(parameter: torch.Tensor) -> tuple[int, int]:
    place = parameter.data_ptr() if parameter.layout is torch.strided else id(parameter)  # packed for a kernel
    return place, 0 if parameter.is_inference() else parameter._version
