"""Linear layers with bfloat16 weights on a CPU, in the layout that oneDNN multiplies without rearranging them first.

Few tokens are multiplied in bfloat16, which reads half of the memory; many tokens in float32, where the processor is as
fast in either, with the weights unpacked for the call. Everything between the layers stays as it was, in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.models.llm.linear.frozen import FrozenLinear, compare, output_dtype

ERROR_BOUND = 0.05
"""Relative error of a layer's outputs above which the kernel is taken for broken; about 0.004 is normal."""
FEW = 32
"""Tokens up to which bfloat16 products are faster than unpacking the weights and multiplying in float32."""
_NO_MORE_STEPS = ("none", [], "")


class Bf16Linear(FrozenLinear):
    """A frozen ``nn.Linear`` with packed bfloat16 weights, made by :meth:`of`.

    Attributes:
        weight: bfloat16 ``[out, in]`` in oneDNN's opaque layout.
        bias: ``[out]`` bfloat16, or None.
    """

    kind = "bf16"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0])
        self.weight = nn.Parameter(torch.ops.mkldnn._reorder_linear_weight(weight, FEW), requires_grad=False)
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
        if inputs.numel() > FEW * self.in_features:
            weight = self.weight.to_dense().to(dtype)
            return F.linear(inputs.to(dtype), weight, None if self.bias is None else self.bias.to(dtype))
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
