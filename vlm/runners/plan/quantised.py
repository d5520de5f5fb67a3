"""Linear layers in 4 or 8 bits as training computes them: a weight is stored short, and long for one product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlm.models.lora import is_lora

BLOCK = 64
"""Weights that share a scale in NF4."""


class _Product(torch.autograd.Function):
    """``x @ W.T`` for a weight that is made long in the forward pass and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        """``x [..., in]`` -> ``[..., out]``."""
        ctx.shape, ctx.dtype = shape, x.dtype
        return x @ packed.new_empty(shape, dtype=x.dtype).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of ``x``."""
        return grad @ grad.new_empty(ctx.shape), None, None


class ShortLinear(nn.Module):
    """Stands for a frozen ``nn.Linear`` of which only the size matters."""

    def __init__(self, layer: nn.Linear, mode: str, double: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        count = layer.in_features * layer.out_features
        if mode == "nf4":
            packed, scales = torch.zeros(-(-count // 2), dtype=torch.uint8), -(-count // BLOCK) * (1 if double else 4)
        else:
            packed, scales = torch.zeros(count, dtype=torch.int8), 4 * layer.out_features
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", torch.zeros(scales, dtype=torch.uint8))
        self.bias = layer.bias
        self.dtype = layer.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]`` in the dtype that the layer would compute in."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        out = _Product.apply(x.to(dtype), self.weight, (self.out_features, self.in_features))
        return out if self.bias is None else out + self.bias


def quantise(model: Any, options: Any) -> None:
    """Replace the frozen linear layers of the decoder of ``model`` by :class:`ShortLinear`, as the run does."""
    double = bool(vars(vars(options).get("quantize_options") or options).get("double"))
    root = model.llm.model.base_model
    for name, module in list(root.named_modules()):
        for child, layer in list(module.named_children()):
            if type(layer) is nn.Linear and not is_lora(f".{name}.{child}") and not layer.weight.requires_grad:
                setattr(module, child, ShortLinear(layer, options.quantize, double))
