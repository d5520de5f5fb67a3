"""Bottleneck adapters after decoder layers, as in arXiv:2307.02469."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.bounds import Count, Natural
from vlm.common.registry import register_insert
from vlm.models.inserts.base import Insert, InsertData, layer_numbers


class Bottleneck(nn.Module):
    """``scaling * up(silu(down(norm(h))))``. State-dict keys: ``norm.*``, ``down.*``, ``up.*``, ``scaling [1]``."""

    def __init__(self, width: int, inner: int, identity_start: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        self.scaling = nn.Parameter(torch.ones(1))
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if identity_start:
            nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., d]`` -> ``[..., d]``, to be added."""
        return self.scaling * self.up(F.silu(self.down(self.norm(hidden))))


@register_insert("adapter")
class Adapter(Insert):
    """A :class:`Bottleneck` added to the output of every ``every``-th decoder layer."""

    @dataclass
    class Config:
        """Options of ``inserts: [{name: adapter}]``.

        ``every`` and ``first`` choose decoder layers. ``bottleneck`` null means half the LLM's width. With
        ``identity_start`` the adapter is the identity before training; published ones start from random weights.

        Example: ``inserts: [{name: adapter, every: 2, bottleneck: 256}]``
        """

        every: Count = 2
        first: Natural = 0
        bottleneck: Count | None = None
        identity_start: bool = False

    def __init__(self, config: Config, llm_dim: int, num_layers: int, visual_dim: int | None) -> None:
        super().__init__()
        self.config = config
        inner = config.bottleneck or llm_dim // 2
        for number in layer_numbers(num_layers, config.every, config.first, "adapter"):
            self.layers[str(number)] = Bottleneck(llm_dim, inner, config.identity_start)

    def after(self, module: Any, hidden: Tensor, data: InsertData | None) -> Tensor:
        """``h + scaling * up(silu(down(norm(h))))``."""
        return hidden + module(hidden).to(hidden.dtype)
