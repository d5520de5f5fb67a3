"""Which layers of an encoder are read, and how several become one (learned shares: arXiv:1802.05365, eq. 1)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from vlm.common.bounds import Range
from vlm.common.errors import ConfigError

Layer = Annotated[int, Range(most=-1)]
Layers = Layer | list[Layer]
"""One layer or several, counted from the end: -1 is the last."""
Combine = Literal["concat", "mean", "weights"]
"""Several layers' states side by side, their mean, or a mean with learned shares."""


def layers_of(layer: int | list[int], combine: Combine, depth: int, part: str) -> list[int]:
    """Indices from the start of the layers whose output is read, in the order of ``layer``.

    Raises ConfigError: a layer that does not exist, one named twice, none, or shares for a single one.
    """
    layers = [layer] if isinstance(layer, int) else list(layer)
    if wrong := [each for each in layers if not -depth <= each <= -1]:
        raise ConfigError(f"{part}.layer is {wrong[0]}, allowed: -{depth} to -1 (the last of {depth})")
    if not layers or len(set(layers)) < len(layers):
        raise ConfigError(f"{part}.layer is {layers}, expected one or several different layers")
    if len(layers) == 1 and combine == "weights":
        raise ConfigError(f"{part}.combine is weights, but layer names one layer", fix="layer: [-2, -5, -8]")
    return [depth + each for each in layers]


def combined(states: list[Tensor], how: Combine, weights: Tensor | None = None) -> Tensor:
    """States ``[m, v, d]`` as one ``[m, v, d]``, or ``[m, v, k * d]`` side by side; ``weights [k]`` become shares."""
    if how == "concat":
        return torch.cat(states, dim=-1)
    if weights is None:
        return torch.stack(states).mean(dim=0)
    return (torch.stack(states, dim=-1) * weights.softmax(dim=0)).sum(dim=-1)


def combined_width(widths: list[int], how: Combine, part: str) -> int:
    """Width of joined states. Raises ConfigError: a mean of states of different widths."""
    if how == "concat":
        return sum(widths)
    if len(set(widths)) > 1:
        raise ConfigError(f"{part}.combine is {how}, but the layers have widths {', '.join(map(str, widths))}")
    return widths[0]
