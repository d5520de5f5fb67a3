"""bitsandbytes, imported when it is needed first, and without its remarks about kernels of other machines."""

from __future__ import annotations

import importlib.util
import logging
import sys
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.errors import ConfigError

NESTED_BLOCK = 256
"""Scales of NF4 that share a scale of their own if these are stored in 8 bits."""


def missing() -> bool:
    """Whether bitsandbytes is not installed."""
    return importlib.util.find_spec("bitsandbytes") is None


def library() -> Any:
    """The package. Raises ConfigError: it is not installed."""
    if missing():
        raise ConfigError(
            "model.llm.quantize needs the package bitsandbytes, which is not installed",
            fix='pip install "vlm-compose[quantize]"',
        )
    if "bitsandbytes" in sys.modules:
        return sys.modules["bitsandbytes"]
    log, compiles = logging.getLogger("bitsandbytes"), torch.compile
    level = log.level
    log.setLevel(logging.ERROR)
    torch.compile = _compiled_when_called  # type: ignore[assignment]  # else it loads a compiler, for seconds
    try:
        import bitsandbytes
    finally:
        log.setLevel(level)
        torch.compile = compiles
    return bitsandbytes


def _compiled_when_called(model: Any = None, **options: Any) -> Any:
    """``torch.compile`` of a function, which begins at its first call."""
    if model is None:
        return lambda function: _compiled_when_called(function, **options)

    @wraps(model)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(torch.compile(model, **options))
        return made[0](*args, **kwargs)

    made: list[Any] = []
    return call


def to_nf4(weight: Tensor, block_size: int, double: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """NF4 of ``weight [out, in]``.

    Returns:
        The packed weights uint8 ``[n / 2]``; the scales of the blocks ``[n / block_size]``, float32, or uint8 with the
        scales of the scales float32 ``[n / block_size / 256]`` and the mean that was taken off them first.
    """
    packed, state = library().functional.quantize_4bit(
        weight.contiguous(), blocksize=block_size, compress_statistics=double, quant_type="nf4"
    )
    nested = state.state2
    return packed.flatten(), state.absmax, None if nested is None else nested.absmax, state.offset


def state_of(
    shape: tuple[int, int], dtype: torch.dtype, block_size: int, scales: Tensor, nested: Tensor | None, mean: Any
) -> Any:
    """What bitsandbytes wants to know of packed weights; arguments as :func:`to_nf4` returns them."""
    functional = library().functional
    inner = None
    if nested is not None:
        inner = functional.QuantState(
            absmax=nested, code=_code(scales.device), blocksize=NESTED_BLOCK, dtype=torch.float32
        )
    return functional.QuantState(
        absmax=scales,
        shape=torch.Size(shape),
        dtype=dtype,
        blocksize=block_size,
        code=functional.get_4bit_type("nf4", device=scales.device),
        quant_type="nf4",
        offset=mean,
        state2=inner,
    )


@cache
def _code(device: torch.device) -> Tensor:
    """The numbers that 8-bit scales stand for."""
    found: Tensor = library().functional.create_dynamic_map().to(device)
    return found


def from_nf4(packed: Tensor, state: Any) -> Tensor:
    """The weights ``[out, in]`` of packed ones, in the dtype of their state."""
    found: Tensor = library().functional.dequantize_4bit(packed.reshape(-1, 1), state)
    return found


def product(inputs: Tensor, packed: Tensor, state: Any) -> Tensor:
    """``inputs [..., in]`` times the packed weights, on a GPU and without a gradient."""
    found: Tensor = library().matmul_4bit(inputs, packed.reshape(-1, 1).t(), quant_state=state)
    return found


def int8_layer(layer: nn.Linear) -> nn.Module:
    """An 8-bit layer of bitsandbytes, whose weights become 8-bit when it is moved to a GPU; for answers."""
    bnb = library().nn
    new: Any = bnb.Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
    new.weight = bnb.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return new  # type: ignore[no-any-return]
