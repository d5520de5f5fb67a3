"""8-bit and 4-bit storage of the frozen LLM: int8 on a CPU through torch, int8 and NF4 on a GPU through bitsandbytes.

On a CPU the head is quantised too, where it is a large share of what a token reads from memory.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vlm.common.errors import ConfigError
from vlm.models.llm import int8
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import is_lora

log = logging.getLogger(__name__)

MODES = ("int8", "nf4")


def check_quantize(mode: str, device: torch.device) -> None:
    """For a user who asks for quantisation explicitly, with an option of a command.

    Raises ConfigError: NF4 on a CPU, int8 on a CPU without VNNI, or no bitsandbytes for a GPU.
    """
    if device.type == "cpu":
        why = int8.unsupported() if mode == "int8" else "the device is a CPU"
        if why is not None:
            raise ConfigError(f"{mode} is not possible: {why}", fix="remove the option, or choose a GPU")
    elif importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"{mode} needs the package bitsandbytes", fix='pip install "vlm-compose[quantize]"')


def check_trains(model_cfg: Any, device: torch.device) -> None:
    """Raises ConfigError: training a composition on a CPU with an LLM in int8, whose layers have no gradient."""
    options = model_cfg.llm.config
    if isinstance(options, HFCausalLM.Config) and options.quantize == "int8" and device.type == "cpu":
        raise ConfigError(
            "model.llm.quantize: int8 on a CPU is for answers, a run cannot train through it",
            fix="set model.llm.quantize=null (or low_resource: false), or train on a GPU",
        )


def quantize_llm(llm: Any, mode: str, device: torch.device) -> torch.dtype | None:
    """Replace the linear layers of the decoder by quantized ones; call after loading, on the CPU.

    Args:
        llm: an ``HFCausalLM``.
        mode: ``int8`` or ``nf4``.
        device: where it will run; for a GPU, weights are quantized while they are moved there.

    Returns:
        The autocast dtype that the LLM needs from now on if that is another: int8 that a CPU cannot compute becomes
        bfloat16, with a warning. Where NF4, or int8 on a GPU, is not possible, the LLM stays as it is, with a warning.

    Raises:
        ConfigError: an unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f"model.llm.quantize: {mode!r} is unknown (allowed: {', '.join(MODES)})")
    if device.type == "cpu" and mode == "int8":
        return _int8_on_cpu(llm)
    missing = importlib.util.find_spec("bitsandbytes") is None
    if device.type == "cpu" or missing:
        why = "the device is a CPU" if device.type == "cpu" else "bitsandbytes is not installed"
        log.warning("model.llm.quantize: %s ignored because %s; the LLM stays in full precision", mode, why)
        return None
    import bitsandbytes

    replace_linears(llm.model.base_model, lambda layer: _quantized(bitsandbytes.nn, layer, mode))
    llm.model.to(device)
    return None


def plain_llm(model_cfg: Any) -> Any:
    """The composition (a ``ModelConfig``) with an LLM that is not quantised when it is loaded."""
    options = model_cfg.llm.config
    if not isinstance(options, HFCausalLM.Config) or options.quantize is None:
        return model_cfg
    llm = dataclasses.replace(model_cfg.llm, config=dataclasses.replace(options, quantize=None))
    return dataclasses.replace(model_cfg, llm=llm)


def _int8_on_cpu(llm: Any) -> torch.dtype | None:
    """Int8 layers where they pass their test, else weights in bfloat16."""
    head = llm.model.get_output_embeddings()
    layers = [layer for _, _, layer in _linears(llm.model) if int8.wide(layer)]
    why = int8.unsupported() or int8.self_test(layers)
    if why is not None:
        log.warning("model.llm.quantize: no int8 because %s; the LLM is stored in bf16", why)
        for name, parameter in llm.model.named_parameters():
            if parameter.is_floating_point() and not is_lora(name):
                parameter.data = parameter.data.to(torch.bfloat16)
        return torch.bfloat16
    before, count = int8.sizes(layers), len(layers)
    widest = "head included" if head in layers else "without the head"
    del layers, head  # so that each layer's float weights go as it is replaced
    replace_linears(llm.model, int8.Int8Linear.of, int8.wide)
    after = int8.sizes(m for m in llm.model.modules() if isinstance(m, int8.Int8Linear))
    mib = 2**20
    log.info("model.llm.quantize: %d layers in int8 (%s), %.0f -> %.0f MiB", count, widest, before / mib, after / mib)
    return None


def replace_linears(
    root: nn.Module, make: Callable[[nn.Linear], nn.Module], chosen: Callable[[nn.Linear], bool] = lambda _: True
) -> int:
    """Replace every plain linear layer below ``root`` that is ``chosen`` by ``make(layer)``, except LoRA's.

    Returns:
        Their number. Each layer is released before the next is made.
    """
    places = [(parent, name) for parent, name, layer in _linears(root) if chosen(layer)]
    for parent, name in places:
        setattr(parent, name, make(getattr(parent, name)))
    return len(places)


def _linears(root: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """(module, attribute, layer) of the plain linear layers below ``root``, except LoRA's."""
    return [
        (module, child_name, child)
        for name, module in root.named_modules()
        for child_name, child in module.named_children()
        if type(child) is nn.Linear and not is_lora(f".{name}.{child_name}")
    ]


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
