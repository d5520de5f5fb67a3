"""``llm.quantize``: which storage goes with which device and purpose, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch

from vlm.common.errors import ConfigError
from vlm.models.llm.hf import HFCausalLM
from vlm.models.llm.linear import int8
from vlm.models.quantized import bnb
from vlm.models.quantized.options import QuantizeOptions
from vlm.models.quantized.place import fill_rest, place_layers
from vlm.models.quantized.short import on_cpu, replace_linears, store_bf16

log = logging.getLogger(__name__)

MODES = ("int8", "bf16", "nf4")


def mode_of(model_cfg: Any) -> str | None:
    """``llm.quantize`` of a ``ModelConfig``; None without it."""
    options = model_cfg.llm.config
    return options.quantize if isinstance(options, HFCausalLM.Config) else None


def gradients_pass(mode: str | None, training: bool) -> bool:
    """Whether the storage is the one that gradients pass, which is filled a matrix at a time.

    ``int8`` has another one for answers alone.
    """
    return mode == "nf4" or (mode == "int8" and training)


def check_quantize(mode: str, device: torch.device) -> None:
    """For a user who asks for quantisation explicitly, with an option of a command.

    Raises ConfigError: int8 on a CPU without VNNI; no bitsandbytes for NF4, or for a GPU.
    """
    if device.type == "cpu" and mode == "int8":
        why = int8.unsupported()
        if why is not None:
            raise ConfigError(f"{mode} is not possible: {why}", fix="remove the option, or choose a GPU")
    elif mode != "bf16" and bnb.missing():
        raise ConfigError(f"{mode} needs the package bitsandbytes", fix='pip install "vlm-compose[quantize]"')


def check_trains(model_cfg: Any, device: torch.device) -> None:
    """For a run, before anything is loaded.

    Raises ConfigError: an LLM in packed bf16 on a CPU, which has no gradient; LoRA that trains and is not there; an LLM
        at random, which could not be quantised again from a file; no bitsandbytes.
    """
    mode = mode_of(model_cfg)
    if mode is None:
        return
    if mode == "bf16" and device.type == "cpu":
        raise ConfigError(
            f"model.llm.quantize: {mode} on a CPU is for answers, a run cannot train through it",
            fix="set model.llm.quantize=nf4 or int8 (for LoRA), or null",
        )
    globs = [glob for glob, on in dict(model_cfg.train).items() if on]
    if model_cfg.llm.config.lora is None and any(glob.startswith("llm") and glob.endswith(".lora") for glob in globs):
        raise ConfigError(
            f"model.llm.quantize: {mode}, and model.train has llm.lora, but model.llm.lora is null",
            fix="set model.llm.lora, e.g. {r: 8, alpha: 16, targets: all-linear}",
        )
    if gradients_pass(mode, training=True) and any(
        weight.format == "random" and (weight.into or "").partition(".")[0] in ("llm", "")
        for weight in model_cfg.weights
    ):
        raise ConfigError(
            f"model.llm.quantize: {mode}, but the LLM starts at random, so that no file has what was quantised",
            fix="name the weights of the LLM in model.weights, or set model.llm.quantize=null",
        )
    if mode == "nf4":
        bnb.library()


def quantize_llm(llm: Any, mode: str, device: torch.device, *, training: bool = False) -> torch.dtype | None:
    """Replace the linear layers of the decoder by quantized ones; call after loading, on the CPU.

    Args:
        llm: an ``HFCausalLM``.
        mode: ``int8``, ``bf16`` or ``nf4``.
        device: where it will run; for a GPU, weights are quantized while they are moved there.
        training: whether gradients must pass int8 layers.

    Returns:
        The autocast dtype that the LLM needs from now on if that is another. Int8 that a CPU cannot compute becomes
        bf16, with a warning; so does bf16 that it cannot compute fast, which is then the dtype of all of the LLM.
        Where int8 on a GPU is not possible, the LLM stays as it is, with a warning.

    Raises:
        ConfigError: an unknown mode; NF4 without bitsandbytes.
    """
    if mode not in MODES:
        raise ConfigError(f"model.llm.quantize: {mode!r} is unknown (allowed: {', '.join(MODES)})")
    if gradients_pass(mode, training):
        fill_rest(place_layers(llm, mode, llm.config.quantize_options, device).values())
        return None
    if device.type == "cpu":
        return on_cpu(llm, mode)
    if mode == "bf16":
        return store_bf16(llm)
    if bnb.missing():
        log.warning("model.llm.quantize: %s ignored because bitsandbytes is not installed", mode)
        return None
    replace_linears(llm.model.base_model, bnb.int8_layer)
    llm.model.to(device)
    return None


def plain_llm(model_cfg: Any) -> Any:
    """The composition (a ``ModelConfig``) with an LLM that is not quantised when it is loaded."""
    if mode_of(model_cfg) is None:
        return model_cfg
    plain = {"quantize": None, "quantize_images": False, "quantize_options": QuantizeOptions()}
    llm = dataclasses.replace(model_cfg.llm, config=dataclasses.replace(model_cfg.llm.config, **plain))
    return dataclasses.replace(model_cfg, llm=llm)
