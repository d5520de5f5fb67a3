"""8-bit (LLM.int8) and 4-bit (NF4) storage of the frozen LLM, through bitsandbytes."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from torch import nn

from vlm.common.errors import ConfigError
from vlm.models.lora import is_lora

log = logging.getLogger(__name__)

MODES = ("int8", "nf4")


def check_quantize(mode: str, device: torch.device) -> None:
    """Raises ConfigError on a CPU or without bitsandbytes, where a user asks for quantisation explicitly."""
    if device.type == "cpu":
        raise ConfigError(f"{mode} needs a GPU, but the device is a CPU", fix="remove the option, or choose a GPU")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"{mode} needs the package bitsandbytes", fix='pip install "vlm-compose[quantize]"')


def quantize_llm(llm: Any, mode: str, device: torch.device) -> bool:
    """Replace the linear layers of the decoder (not its head) by quantized ones; call after loading, on the CPU.

    Args:
        llm: an ``HFCausalLM``.
        mode: ``int8`` or ``nf4``.
        device: where it will run; weights are quantized while they are moved there.

    Returns:
        False, with a warning, if it is not possible (no accelerator or no bitsandbytes); full precision then.

    Raises:
        ConfigError: an unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f"model.llm.quantize: {mode!r} is unknown (allowed: {', '.join(MODES)})")
    missing = importlib.util.find_spec("bitsandbytes") is None
    if device.type == "cpu" or missing:
        why = "the device is a CPU" if device.type == "cpu" else "bitsandbytes is not installed"
        log.warning("model.llm.quantize: %s ignored because %s; the LLM stays in full precision", mode, why)
        return False
    import bitsandbytes

    replace_linears(llm.model.base_model, lambda layer: _quantized(bitsandbytes.nn, layer, mode))
    llm.model.to(device)
    return True


def replace_linears(root: nn.Module, make: Any) -> int:
    """Replace every plain linear layer below ``root`` by ``make(layer)``, except LoRA's; returns their number."""
    count = 0
    for name, module in list(root.named_modules()):
        for child_name, child in list(module.named_children()):
            if type(child) is nn.Linear and not is_lora(f".{name}.{child_name}"):
                setattr(module, child_name, make(child))
                count += 1
    return count


def _quantized(bnb: Any, layer: nn.Linear, mode: str) -> nn.Module:
    sizes, has_bias = (layer.in_features, layer.out_features), layer.bias is not None
    if mode == "int8":
        new = bnb.Linear8bitLt(*sizes, bias=has_bias, has_fp16_weights=False)
        new.weight = bnb.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        new = bnb.Linear4bit(*sizes, bias=has_bias, compute_dtype=layer.weight.dtype, quant_type="nf4")
        new.weight = bnb.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    if has_bias:
        new.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return new
