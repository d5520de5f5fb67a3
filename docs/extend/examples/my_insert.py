"""An insert: a trained vector added to the output of some decoder layers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm import register_insert
from vlm.models.inserts.base import Insert, InsertData, layer_numbers


class Vector(nn.Module):
    """One vector of the LLM's width, zero at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(width))


@register_insert("steering")
class Steering(Insert):
    """Adds a vector after every ``every``-th layer."""

    @dataclass
    class Config:
        """Options of ``inserts: [{name: steering}]``."""

        every: int = 1

    def __init__(self, config: Config, llm_dim: int, num_layers: int, visual_dim: int | None) -> None:
        super().__init__()
        self.config = config
        for number in layer_numbers(num_layers, config.every, 0, "steering"):
            self.layers[str(number)] = Vector(llm_dim)

    def after(self, module: Vector, hidden: Tensor, data: InsertData | None) -> Tensor:
        """``hidden [b, s, d]`` of the layer -> what the next layer gets."""
        return hidden + module.value.to(hidden.dtype)
