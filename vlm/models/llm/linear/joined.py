"""Linear layers that read the same input, such as query, key and value, computed in one product.

Which layers do is seen in one call of the model, not looked up by name, so that it holds for any family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.errors import ConfigError


class Joined(nn.Module):
    """One layer with the outputs of several, one after the other.

    The first of them computes for all; the others find their part as long as they are given the very same tensor.
    """

    def __init__(self, layer: nn.Module, widths: Sequence[int]) -> None:
        super().__init__()
        self.layer = layer
        self.widths = list(widths)
        # one value, so that threads see both or none; in a list, because setting an attribute of a module is slow
        self._known: list[tuple[Tensor | None, Sequence[Tensor]]] = [(None, ())]

    def part(self, number: int, inputs: Tensor) -> Tensor:
        """``[..., in]`` -> the outputs ``[..., width]`` of one of the layers."""
        given, outputs = self._known[0]
        if number == 0 or given is not inputs:
            outputs = self.layer(inputs).split(self.widths, -1)
        self._known[0] = (None, ()) if number == len(self.widths) - 1 else (inputs, outputs)
        return outputs[number]


class JoinedPart(nn.Module):
    """What takes the place of one of the layers; the first of them holds the whole as a module."""

    def __init__(self, whole: Joined, number: int) -> None:
        super().__init__()
        self.__dict__["whole"] = whole
        self.number = number
        if number == 0:
            self.joined = whole

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]`` as the layer that it replaces."""
        whole: Joined = self.__dict__["whole"]
        return whole.part(self.number, inputs)

    @property
    def weight(self) -> Tensor:
        """Of all layers together: families look at its dtype and device."""
        weight: Tensor = self.__dict__["whole"].layer.weight
        return weight


def one_layer(layers: Sequence[nn.Linear]) -> nn.Linear:
    """A layer with the outputs of all ``layers``, one after the other."""
    if len(layers) == 1:
        return layers[0]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    made = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if any(layer.bias is not None for layer in layers):
        parts = [weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
        made.bias = nn.Parameter(torch.cat([part.detach() for part in parts]), requires_grad=False)
    return made


def find_siblings(run: Callable[[], Any], layers: Sequence[nn.Linear]) -> list[list[nn.Linear]]:
    """Groups of ``layers`` that ``run`` gives the same, unchanged input one after the other, in the order of the calls.

    A layer that reads an input by itself is a group of its own. One that is called more than once, or never (others
    may read its weights), is in none; where ``run`` fails there is no group.
    """
    trace = _Trace()
    handles = [layer.register_forward_pre_hook(trace) for layer in layers]
    try:
        with torch.no_grad():
            run()
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, ConfigError):
        return []
    finally:
        for handle in handles:
            handle.remove()
    once = [group for group in trace.groups if all(trace.calls[id(layer)] == 1 for layer in group)]
    return [group for group in once if len({layer.weight.dtype for layer in group}) == 1]


class _Trace:
    """A hook before linear layers."""

    def __init__(self) -> None:
        self.groups: list[list[nn.Linear]] = []
        self.calls: dict[int, int] = {}
        self._last: tuple[Tensor, Tensor] | None = None  # an input, and what it was

    def __call__(self, layer: Any, args: tuple[Any, ...]) -> None:
        self.calls[id(layer)] = self.calls.get(id(layer), 0) + 1
        inputs = args[0] if len(args) == 1 and isinstance(args[0], Tensor) else None
        last = self._last
        if inputs is not None and last is not None and last[0] is inputs and torch.equal(inputs, last[1]):
            self.groups[-1].append(layer)
            return
        self.groups.append([layer])
        self._last = None if inputs is None else (inputs, inputs.clone())
