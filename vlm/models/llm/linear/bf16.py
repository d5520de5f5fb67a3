"""Linear layers with bfloat16 weights on a CPU, in the layout that oneDNN multiplies without rearranging them first.

A few tokens take as long as it takes to read the weights, of which bfloat16 has half as many bytes. Everything between
the layers stays as it was, in float32. (A processor without AMX multiplies bfloat16 no faster than float32, so that a
long prompt, of hundreds of tokens, takes half as long again; unpacking the weights for it takes longer still.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm.models.llm.linear.frozen import FrozenLinear, compare, output_dtype

ERROR_BOUND = 0.05
"""Relative error of a layer's outputs above which the kernel is taken for broken; about 0.004 is normal."""
MEANT_FOR = 8
"""Tokens that the layout is chosen for; it was the same for 1, 8 and 16."""
_NO_MORE_STEPS: tuple[Any, ...] = ("none", [], "")


class Bf16Linear(FrozenLinear):
    """A frozen ``nn.Linear`` with packed bfloat16 weights, made by :meth:`of`.

    Attributes:
        weight: bfloat16 ``[out, in]`` in oneDNN's opaque layout.
        bias: ``[out]`` bfloat16, or None.
    """

    kind = "bf16"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0])
        self.weight = nn.Parameter(torch.ops.mkldnn._reorder_linear_weight(weight, MEANT_FOR), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def of(cls, layer: nn.Linear) -> Bf16Linear:
        """The bfloat16 layer of ``layer``."""
        bias = None if layer.bias is None else layer.bias.detach().bfloat16()
        return cls(layer.weight.detach().bfloat16().contiguous(), bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]`` in the dtype of autocast, else of ``inputs``.

        Raises ConfigError: see :func:`output_dtype`.
        """
        dtype = output_dtype(inputs)
        multiply = torch.ops.mkldnn._linear_pointwise.default
        out: Tensor = multiply(inputs.bfloat16(), self.weight, self.bias, *_NO_MORE_STEPS)
        return out.to(dtype)


def unsupported() -> str | None:
    """Why this machine cannot multiply packed bfloat16 weights fast on its CPU; None if it can."""
    if not torch.backends.mkldnn.is_available():
        return "torch was built without oneDNN"
    if not (hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return f"torch {torch.__version__} has no packed layers for a CPU"
    if not torch.cpu._is_avx512_bf16_supported():
        return "the CPU has no AVX512-BF16"
    return None


def self_test(layers: list[nn.Linear]) -> str | None:
    """Compare some of ``layers`` with themselves in bfloat16. Returns what is wrong, or None."""
    return compare(layers, [Bf16Linear.of], ERROR_BOUND, "torch's packed bf16 kernel")
