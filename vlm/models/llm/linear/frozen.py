"""What the linear layers with short weights on a CPU share: they answer, and are neither trained nor saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.errors import ConfigError

LEAST_WIDTH = 16
"""A layer with fewer inputs or outputs stays as it is: a router of experts, which short weights make no faster."""
_ROWS_TRIED = (1, 5)


class FrozenLinear(nn.Module):
    """A linear layer in place of an ``nn.Linear``. It has no gradient and is never saved.

    Attributes:
        kind: what its weights are, for messages.
        weight: in a layout of its own.
        bias: ``[out]`` or None.
    """

    kind: ClassVar[str]
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features

    def extra_repr(self) -> str:
        """Sizes, as ``nn.Linear`` shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Raises ConfigError: there are no weights to save."""
        raise ConfigError(
            f"model.llm.quantize: {self.kind} weights of a CPU cannot be saved",
            fix="load the model without model.llm.quantize (or low_resource), and save that",
        )


def output_dtype(inputs: Tensor) -> torch.dtype:
    """The dtype in which a linear layer answers: that of autocast, else of its inputs.

    Raises ConfigError: the LLM's class casts what it passes on to the dtype of the weights.
    """
    if not inputs.is_floating_point():
        raise ConfigError(
            f"model.llm.quantize: this kind of language model works in the dtype of its weights ({inputs.dtype})",
            fix="remove model.llm.quantize (or low_resource)",
        )
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype


def wide(layer: nn.Linear) -> bool:
    """Whether ``layer`` is large enough to be replaced."""
    return min(layer.in_features, layer.out_features) >= LEAST_WIDTH


def compare(
    layers: Sequence[nn.Linear], makes: Sequence[Callable[[nn.Linear], nn.Module]], bound: float, what: str
) -> str | None:
    """Compare the first, the middle and the last of ``layers`` with what replaces them, on random inputs.

    Args:
        layers: in float32, float16 or bfloat16.
        makes: ways to replace a layer.
        bound: relative error that is still right.
        what: is tested, for the message.

    Returns:
        What is wrong, or None. Nothing is kept.
    """
    places = sorted({0, len(layers) // 2, len(layers) - 1}) if layers else []
    for layer in (layers[place] for place in places):
        for make in makes:
            try:
                wrong = _difference(layer, make(layer), bound, what)
            except (RuntimeError, TypeError, NotImplementedError) as error:  # no such kernel, or another signature
                return f"{what} fails ({str(error).splitlines()[0]:.100})"
            if wrong is not None:
                return wrong
    return None


def _difference(layer: nn.Linear, made: nn.Module, bound: float, what: str) -> str | None:
    draw = torch.Generator().manual_seed(0)
    dtype = layer.weight.dtype
    for rows in _ROWS_TRIED:
        inputs = torch.randn(rows, layer.in_features, generator=draw)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            expected = F.linear(inputs.to(dtype), layer.weight, layer.bias).float()
            found = made(inputs)
        if not found.isfinite().all():
            return f"{what} gives values that are not numbers"
        error = ((found - expected).norm() / expected.norm().clamp_min(1e-20)).item()
        if error > bound:
            return f"{what} is off by {error:.0%} on {layer.out_features} x {layer.in_features} weights"
    return None
