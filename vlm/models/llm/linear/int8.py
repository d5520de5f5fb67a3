"""Linear layers with int8 weights on a CPU, through oneDNN.

Each output row of the weights has a scale of its own, and so has each token: rows are quantised one by one as they
arrive, symmetrically. The sums are exact integers, so that a token's result depends neither on the other tokens of a
batch nor on their number. (torch's ``linear_dynamic`` is up to 15 % faster, but has one scale for all tokens.)
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.models.llm.linear.frozen import FrozenLinear, compare, output_dtype

ERROR_BOUND = 0.1
"""Relative error of a layer's outputs above which the kernels are taken for broken; about 0.01 is normal."""
PACKED_FROM = 2**21
"""Weights from which oneDNN's packed layout is faster than the plain one, or as fast, measured at 1 to 64 tokens."""
_FLOAT_OUTPUT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")  # scale, zero point, dtype, and no more steps


class Int8Linear(FrozenLinear):
    """A frozen ``nn.Linear`` in int8, made by :meth:`of`. For answers only: it has no gradient and is never saved.

    Attributes:
        weight: int8 ``[out, in]``, or ``[in, out]`` in oneDNN's opaque layout when ``packed``.
        scale: ``[out]`` float32, what one step of the integers is worth.
        bias: ``[out]`` float32, or None.
        packed: which of the two kernels is used; their results are equal bit by bit.
    """

    kind = "int8"

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, packed: bool) -> None:
        super().__init__(weight.shape[1], weight.shape[0])
        self.packed = packed
        if packed:
            weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.scale = scale
        self._zero = torch.zeros(self.out_features if packed else 0, dtype=torch.int32)  # what oneDNN subtracts
        self._step = torch.tensor(1 / 127)  # a product with a tensor takes half as long as one with a number

    @classmethod
    def of(cls, layer: nn.Linear, packed: bool | None = None) -> Int8Linear:
        """The int8 layer of ``layer``; ``packed`` None takes the kernel that is faster for its size."""
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1).div_(127).clamp_min_(torch.finfo(torch.float32).tiny)
        rounded = (weight / scale[:, None]).round_().to(torch.int8)
        bias = None if layer.bias is None else layer.bias.detach().float()
        return cls(rounded, scale, bias, weight.numel() > PACKED_FROM if packed is None else packed)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]`` in the dtype of autocast, else of ``inputs``.

        Raises ConfigError: see :func:`output_dtype`.
        """
        dtype = output_dtype(inputs)
        rows = inputs.reshape(-1, self.in_features).float()
        # a row of zeros becomes 0 / 0, which is some integer times 0; one that is not finite stays so by its scale
        scale = rows.abs().amax(-1, keepdim=True) * self._step
        rounded = (rows / scale).round_().to(torch.int8)
        if self.packed:
            shifted = rounded.bitwise_xor_(-128).view(torch.uint8)  # adds 128: unsigned times signed
            multiply = torch.ops.onednn.qlinear_pointwise.default
            out = multiply(shifted, 1.0, 128, self.weight, self.scale, self._zero, None, *_FLOAT_OUTPUT)
        else:
            out = torch._int_mm(rounded, self.weight.t()) * self.scale
        out = out.mul_(scale) if self.bias is None else torch.addcmul(self.bias, out, scale)
        return out.to(dtype).view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, as ``nn.Linear`` shows them, and the layout."""
        return f"{super().extra_repr()}, {'packed' if self.packed else 'plain'}"


def unsupported() -> str | None:
    """Why this machine cannot compute with int8 weights on its CPU; None if it can."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.cpu._is_vnni_supported():
        return "the CPU has no AVX512-VNNI"
    if not torch.backends.mkldnn.is_available():
        return "torch was built without oneDNN"
    if not (hasattr(torch.ops.onednn, "qlinear_pointwise") and hasattr(torch, "_int_mm")):
        return f"torch {torch.__version__} has no int8 kernels for a CPU"
    return None


def self_test(layers: Sequence[nn.Linear]) -> str | None:
    """Compare some of ``layers`` with themselves in int8, by both kernels. Returns what is wrong, or None."""
    makes = [lambda layer, packed=packed: Int8Linear.of(layer, packed) for packed in (False, True)]
    return compare(layers, makes, ERROR_BOUND, "torch's int8 kernel")
