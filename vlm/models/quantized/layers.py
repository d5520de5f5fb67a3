"""Linear layers with 4-bit or 8-bit weights that gradients pass: what LoRA is trained around, and answers on a CPU.

The weights are plain tensors of bytes, a row of the matrix in a row of each, without anything beside them that a copy,
another device or a shard could lose. A product makes the matrix again and forgets it, forwards and backwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.errors import ConfigError, WeightsError
from vlm.common.processes.shards import fill, is_split, whole
from vlm.models.llm.linear.frozen import wide
from vlm.models.precision import parse_dtype
from vlm.models.quantized import bnb
from vlm.models.quantized.options import QuantizeOptions
from vlm.models.quantized.probe import Probed, probe


class QuantisedLinear(nn.Module, ABC):
    """In place of a frozen ``nn.Linear``; the weights come later, by :meth:`fill` or :meth:`take`.

    Attributes:
        mode: its name in ``llm.quantize``.
        weight: integers, see the subclass.
        scales: their scales as bytes, so that no change of floating-point types touches them.
        bias: that of the layer, as it is.
        probe: a few numbers of the matrix before it was quantised, float32 ``[16]``; None before it is filled.
        dtype: storage dtype of the layer that this one replaces.
        filled: whether the weights are there.
        kept: whether the quantised weights are in a file already, so that :meth:`fill` only sees what they belong to.
    """

    mode: ClassVar[str]
    weight: nn.Parameter
    scales: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear, options: QuantizeOptions, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.options = options
        self.dtype = layer.weight.dtype
        for name, (shape, dtype) in self.layout().items():
            empty = torch.empty(shape, dtype=dtype)
            if name in ("weight", "scales"):
                self.register_parameter(name, nn.Parameter(empty, requires_grad=False))
            else:
                self.register_buffer(name, empty, persistent=False)
        self.bias = layer.bias
        self.probe: Tensor | None = None
        self.kept = False
        self.filled = False
        self._device = device  # where the weights are quantised
        self._compute = None if options.compute_dtype is None else parse_dtype(options.compute_dtype)
        self._floats: Tensor | None = layer.weight.detach()  # takes no room until somebody writes to it

    @classmethod
    def takes(cls, layer: nn.Linear, options: QuantizeOptions) -> bool:
        """Whether such a layer can take the place of ``layer``."""
        return wide(layer)

    @abstractmethod
    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors of a float32 matrix ``[out, in]``, by their names in this module."""

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix ``[out, in]`` that the weights stand for."""

    @property
    def full_shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.out_features, self.in_features

    def fill(self, weight: Tensor | None = None) -> None:
        """Quantise the matrix ``[out, in]`` of any floating-point type; None: the values that the layer had."""
        weight = self._floats if weight is None else weight
        assert weight is not None
        self.probe = probe(weight, self.full_shape)
        if not self.kept:
            self.take(self.pack(weight.detach().to(self._device, torch.float32)))

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Use tensors that :meth:`pack` made; of parameters that are split, only this process's rows are kept.

        Raises WeightsError: they are not those of such a layer.
        """
        expected = self.layout()
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if found != expected:
            raise WeightsError(f"quantised weights of another layer: {found}, expected {expected}")
        self._floats, self.filled = None, True
        for name, tensor in tensors.items():
            have = getattr(self, name)
            if is_split(have):
                fill(have, tensor)
            else:
                have.data = tensor

    @abstractmethod
    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of what :meth:`pack` gives, by name."""

    def tensors(self) -> dict[str, Tensor]:
        """What :meth:`take` takes. Of a split layer every process must ask."""
        return {name: whole(getattr(self, name)).detach() for name in self.layout()}

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]`` in the dtype of autocast, else of ``inputs``.

        Raises ConfigError: the LLM's class casts what it passes on to the dtype of the weights.
        """
        if not inputs.is_floating_point():
            raise ConfigError(
                f"model.llm.quantize: this kind of language model works in the dtype of its weights ({inputs.dtype})",
                fix="add the layer's name to model.llm.quantize_options.skip, or remove model.llm.quantize",
            )
        kind = inputs.device.type
        out = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        made = self.multiply(inputs.to(self._compute or out))
        if self.bias is not None:
            made = made + self.bias.to(made.dtype)
        return made.to(out)

    def multiply(self, inputs: Tensor) -> Tensor:
        """The product without the bias, in the dtype of ``inputs``."""
        found: Tensor = _Product.apply(inputs, self)
        return found

    def extra_repr(self) -> str:
        """Sizes, as ``nn.Linear`` shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """The matrix that a file of full weights fills, without numbers (device ``meta``)."""
        destination[f"{prefix}weight"] = torch.empty(self.full_shape, dtype=self.dtype, device="meta")
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()


class _Product(torch.autograd.Function):
    """A linear map whose matrix is made again in the backward pass; it keeps no activations."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        with torch.autocast(inputs.device.type, enabled=False):
            return F.linear(inputs, layer.dense(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        with torch.autocast(grad.device.type, enabled=False):
            return grad @ ctx.layer.dense(grad.dtype), None


class Nf4Linear(QuantisedLinear):
    """4-bit weights by blocks, a scale for each block, these in 8 bits if ``options.double``.

    Attributes:
        weight: uint8 ``[out, in / 2]``.
        scales: uint8 ``[out, in / block_size]``, or the bytes of float32 ``[out, 4 * in / block_size]``.
        nested: scales of the scales, float32 ``[n]``; with ``options.double`` only.
        mean: what was taken off the scales, float32 scalar; with ``options.double`` only.
    """

    mode = "nf4"
    nested: Tensor
    mean: Tensor

    def __init__(self, layer: nn.Linear, options: QuantizeOptions, device: torch.device) -> None:
        block_size = options.block_of(layer.in_features)
        if block_size is None:
            raise ValueError(f"no block size divides {layer.in_features}")
        self.block_size = block_size
        super().__init__(layer, options, device)

    @classmethod
    def takes(cls, layer: nn.Linear, options: QuantizeOptions) -> bool:
        """See :meth:`QuantisedLinear.takes`."""
        return super().takes(layer, options) and options.block_of(layer.in_features) is not None

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """See :meth:`QuantisedLinear.pack`."""
        packed, scales, nested, mean = bnb.to_nf4(weight, self.block_size, self.options.double)
        rows = {"weight": packed, "scales": scales.contiguous().view(torch.uint8)}
        made = {name: tensor.reshape(self.out_features, -1) for name, tensor in rows.items()}
        if nested is None or mean is None:
            return made
        return {**made, "nested": nested, "mean": mean.detach().float().reshape(())}

    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """See :meth:`QuantisedLinear.layout`."""
        blocks = self.in_features // self.block_size
        sizes = {"weight": self.in_features // 2, "scales": blocks * (1 if self.options.double else 4)}
        made: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            name: ((self.out_features, width), torch.uint8) for name, width in sizes.items()
        }
        if self.options.double:
            count = -(-self.out_features * blocks // bnb.NESTED_BLOCK)
            made |= {"nested": ((count,), torch.float32), "mean": ((), torch.float32)}
        return made

    def dense(self, dtype: torch.dtype) -> Tensor:
        """See :meth:`QuantisedLinear.dense`."""
        return bnb.from_nf4(self.weight, self._state(dtype))

    def multiply(self, inputs: Tensor) -> Tensor:
        """See :meth:`QuantisedLinear.multiply`; on a GPU and without a gradient, without making the matrix."""
        if inputs.is_cuda and not (torch.is_grad_enabled() and inputs.requires_grad):
            return bnb.product(inputs, self.weight, self._state(inputs.dtype))
        return super().multiply(inputs)

    def _state(self, dtype: torch.dtype) -> Any:
        flat = self.scales.data.reshape(-1)
        scales = flat if self.options.double else flat.view(torch.float32)
        nested, mean = (self.nested, self.mean) if self.options.double else (None, None)
        return bnb.state_of(self.full_shape, dtype, self.block_size, scales, nested, mean)


class RowInt8Linear(QuantisedLinear):
    """8-bit weights with a scale for each row; activations are not rounded, and gradients are those of the product.

    Attributes:
        weight: int8 ``[out, in]``.
        scales: uint8 ``[out, 4]``, the bytes of float32.
    """

    mode = "int8"

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """See :meth:`QuantisedLinear.pack`."""
        scales = weight.abs().amax(dim=1, keepdim=True).div_(127)
        whole = (weight / scales.clamp_min(torch.finfo(torch.float32).tiny)).round_().clamp_(-127, 127)
        return {"weight": whole.to(torch.int8), "scales": scales.view(torch.uint8)}

    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """See :meth:`QuantisedLinear.layout`."""
        return {"weight": (self.full_shape, torch.int8), "scales": ((self.out_features, 4), torch.uint8)}

    def dense(self, dtype: torch.dtype) -> Tensor:
        """See :meth:`QuantisedLinear.dense`."""
        return self.weight.detach().to(dtype) * self.scales.detach().contiguous().view(torch.float32).to(dtype)


KINDS: dict[str, type[QuantisedLinear]] = {cls.mode: cls for cls in (Nf4Linear, RowInt8Linear)}


def quantised_layers(root: nn.Module) -> dict[str, QuantisedLinear]:
    """The quantised layers below ``root`` by name."""
    return {name: module for name, module in root.named_modules() if isinstance(module, QuantisedLinear)}


def source_parameters(root: nn.Module) -> list[tuple[str, Tensor | Probed]]:
    """The parameters below ``root`` by name, as if no layer were quantised: of those there is a :class:`Probed`."""
    found: dict[str, Tensor | Probed] = dict(root.named_parameters())
    for name, layer in quantised_layers(root).items():
        start = f"{name}." if name else ""
        del found[f"{start}scales"]
        if layer.probe is not None:
            found[f"{start}weight"] = Probed(layer.full_shape, layer.probe)
    return list(found.items())
