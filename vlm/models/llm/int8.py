"""Linear layers with int8 weights on a CPU, through oneDNN.

Each output row of the weights has a scale of its own, and so has each token: rows are quantised one by one as they
arrive, symmetrically. The sums are exact integers, so that a token's result depends neither on the other tokens of a
batch nor on their number. (torch's ``linear_dynamic`` is up to 15 % faster, but has one scale for all tokens.)
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.errors import ConfigError

ERROR_BOUND = 0.1
"""Relative error of a layer's outputs above which the kernels are taken for broken; about 0.01 is normal."""
LEAST_WIDTH = 16
"""A layer with fewer inputs or outputs stays as it is: a router of experts, which int8 would not make faster."""
PACKED_FROM = 2**20
"""Weights from which oneDNN's packed layout is faster than the plain one, measured at 1 to 64 tokens."""
_ROWS_TRIED = (1, 5)
_FLOAT_OUTPUT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")  # scale, zero point, dtype, and no more steps


class Int8Linear(nn.Module):
    """A frozen ``nn.Linear`` in int8, made by :meth:`of`. For answers only: it has no gradient and is never saved.

    Attributes:
        weight: int8 ``[out, in]``, or ``[in, out]`` in oneDNN's opaque layout when ``packed``.
        scale: ``[out]`` float32, what one step of the integers is worth.
        bias: ``[out]`` float32, or None.
        packed: which of the two kernels is used; their results are equal bit by bit.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, packed: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = packed
        if packed:
            weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.scale = scale
        self._zero = torch.zeros(self.out_features if packed else 0, dtype=torch.int32)  # what oneDNN subtracts

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

        Raises ConfigError: the LLM's class casts what it passes on to the dtype of the weights.
        """
        if not inputs.is_floating_point():
            raise ConfigError(
                f"model.llm.quantize: this kind of language model works in the dtype of its weights ({inputs.dtype})",
                fix="remove model.llm.quantize (or low_resource)",
            )
        rows = inputs.reshape(-1, self.in_features).float()
        # a row of zeros becomes 0 / 0, which is 0 as an integer; one that is not finite stays so by its scale
        scale = rows.abs().amax(-1, keepdim=True).mul_(1 / 127)
        rounded = (rows / scale).round_().to(torch.int8)
        out = self._packed(rounded) if self.packed else torch._int_mm(rounded, self.weight.t()).float()
        if not self.packed:
            out = out.mul_(self.scale)
        out = out.mul_(scale) if self.bias is None else torch.addcmul(self.bias, out, scale)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype
        return out.to(dtype).unflatten(0, inputs.shape[:-1]) if inputs.dim() != 2 else out.to(dtype)

    def _packed(self, rounded: Tensor) -> Tensor:
        shifted = rounded.bitwise_xor_(-128).view(torch.uint8)  # adds 128: the processor multiplies unsigned by signed
        return torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, 128, self.weight, self.scale, self._zero, None, *_FLOAT_OUTPUT
        )

    def extra_repr(self) -> str:
        """Sizes, as ``nn.Linear`` shows them."""
        kind = "packed" if self.packed else "plain"
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {kind}"

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Raises ConfigError: there are no weights to save."""
        raise ConfigError(
            "model.llm.quantize: int8 weights of a CPU cannot be saved",
            fix="load the model without model.llm.quantize (or low_resource), and save that",
        )


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
    """Compare the first, the middle and the last of ``layers`` with themselves in int8, on random inputs.

    Returns:
        What is wrong, or None. Nothing is kept.
    """
    places = sorted({0, len(layers) // 2, len(layers) - 1}) if layers else []
    for layer in (layers[place] for place in places):
        for packed in (False, True):
            try:
                wrong = _difference(layer, Int8Linear.of(layer, packed))
            except (RuntimeError, TypeError, NotImplementedError) as error:  # no such kernel, or another signature
                return f"torch's int8 kernel fails ({str(error).splitlines()[0]:.100})"
            if wrong is not None:
                return wrong
    return None


def _difference(layer: nn.Linear, int8: Int8Linear) -> str | None:
    draw = torch.Generator().manual_seed(0)
    dtype = layer.weight.dtype
    for rows in _ROWS_TRIED:
        inputs = torch.randn(rows, layer.in_features, generator=draw)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            expected = F.linear(inputs.to(dtype), layer.weight, layer.bias).float()
            found = int8(inputs)
        if not found.isfinite().all():
            return "torch's int8 kernel gives values that are not numbers"
        error = ((found - expected).norm() / expected.norm().clamp_min(1e-20)).item()
        if error > ERROR_BOUND:
            return f"torch's int8 kernel is off by {error:.0%} on {layer.out_features} x {layer.in_features} weights"
    return None


def wide(layer: nn.Linear) -> bool:
    """Whether ``layer`` is large enough to be quantised."""
    return min(layer.in_features, layer.out_features) >= LEAST_WIDTH


def sizes(layers: Iterable[nn.Module]) -> int:
    """Bytes of the weights of ``layers``."""
    return sum(p.numel() * p.element_size() for layer in layers for p in layer.parameters(recurse=False))
