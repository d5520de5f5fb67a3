"""LoRA (arXiv:2106.09685) through peft."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlm.common.errors import ConfigError

ADAPTER = "default"
"""peft's name of the adapter, part of the state-dict keys ``*.lora_A.default.weight``."""


@dataclass
class LoraOptions:
    """Options of ``lora:``; the update is scaled by ``alpha / r``."""

    r: int = 8
    alpha: float = 16
    dropout: float = 0.05
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])


def inject_lora(module: nn.Module, options: LoraOptions) -> None:
    """Add low-rank updates to the linear layers named in ``options.targets``; the class of ``module`` stays.

    A wrapped layer's weight moves from ``x.weight`` to ``x.base_layer.weight``; the new parameters are
    ``x.lora_A.default.weight [r, in]`` and ``x.lora_B.default.weight [out, r]``, in float32.

    Raises:
        ConfigError: no layer has one of the names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    have = {name.rpartition(".")[2] for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    absent = sorted(set(options.targets) - have)
    if absent:
        raise ConfigError(
            f"lora.targets: no linear layer is called {', '.join(absent)} (there are: {', '.join(sorted(have))})"
        )
    scale: Any = options.alpha  # any number will do, whatever its declared type
    config = LoraConfig(
        r=options.r,
        lora_alpha=scale,
        lora_dropout=options.dropout,
        target_modules=list(options.targets),
        bias="none",
    )
    inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for name, parameter in module.named_parameters():
        if is_lora(name):
            value = parameter.data.float()
            if ".lora_A." in name:
                # peft's own draw again: it is skipped where a file fills the rest of the module
                value = (torch.rand(value.shape, device=value.device) * 2 - 1) / math.sqrt(value.shape[1])
            parameter.data = value


def is_lora(name: str) -> bool:
    """Whether a parameter name is part of a LoRA update."""
    return ".lora_" in name
