"""LoRA (arXiv:2106.09685) through peft."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlm.common.errors import ConfigError

ADAPTER = "default"
"""peft's name of the adapter, part of the state-dict keys ``*.lora_A.default.weight``."""


@dataclass
class LoraOptions:
    """Options of ``lora:``; the update is scaled by ``alpha / r``.

    ``targets`` is a list of names, each a whole name or the end of one (``q_proj``, ``self_attn.q_proj``), or one
    regular expression that a whole name must match. Names are those of the linear layers within the part.

    Example: ``lora: {r: 8, alpha: 16, targets: [q_proj, v_proj]}``
    """

    r: int = 8
    alpha: float = 16
    dropout: float = 0.05
    targets: list[str] | str = field(default_factory=lambda: ["q_proj", "v_proj"])

    def __post_init__(self) -> None:
        """Raises ConfigError: a rank below 1, a dropout outside [0, 1), no target, a faulty regular expression."""
        if self.r < 1:
            raise ConfigError(f"lora.r is {self.r}, expected at least 1 (lora: null for none)")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}, expected at least 0 and below 1")
        if not self.targets:
            raise ConfigError("lora.targets is empty; expected names of linear layers")
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise ConfigError(f"lora.targets: {self.targets!r} is not a regular expression ({error})") from error


class LoraTargetError(ConfigError):
    """Layers that ``lora.targets`` names do not exist."""


def inject_lora(module: nn.Module, options: LoraOptions) -> None:
    """Add low-rank updates to the linear layers named in ``options.targets``; the class of ``module`` stays.

    A wrapped layer's weight moves from ``x.weight`` to ``x.base_layer.weight``; the new parameters are
    ``x.lora_A.default.weight [r, in]`` and ``x.lora_B.default.weight [out, r]``, in float32.

    Under autocast the update is computed in the half dtype, like the layer itself. A published system answers
    without autocast, its update in float32 over a float16 layer: the two differ by rounding only. Merged weights
    are equal, because merging computes the update in float32.

    Raises:
        LoraTargetError: a target fits no linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    chosen = "|".join(map(re.escape, target_layers(module, options.targets)))  # a list would match endings again
    scale: Any = options.alpha  # peft takes any number, whatever its declared type
    config = LoraConfig(r=options.r, lora_alpha=scale, lora_dropout=options.dropout, target_modules=chosen, bias="none")
    inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for name, parameter in module.named_parameters():
        if is_lora(name):
            value = parameter.data.float()
            if ".lora_A." in name:
                # repeat peft's draw, which is skipped where a file fills the rest of the module
                value = (torch.rand(value.shape, device=value.device) * 2 - 1) / math.sqrt(value.shape[1])
            parameter.data = value


def target_layers(module: nn.Module, targets: list[str] | str) -> list[str]:
    """Names of the linear layers of ``module`` that ``targets`` (see :class:`LoraOptions`) selects.

    Raises LoraTargetError: a target fits no linear layer.
    """
    linear = [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
    if isinstance(targets, str):
        pattern = re.compile(targets)
        result = {targets: [name for name in linear if pattern.fullmatch(name)]}
    else:
        result = {t: [name for name in linear if name == t or name.endswith(f".{t}")] for t in targets}
    if absent := sorted(target for target, names in result.items() if not names):
        have = sorted({name.rpartition(".")[2] for name in linear})
        more = f" and {len(absent) - 4} more" if len(absent) > 4 else ""
        raise LoraTargetError(
            f"lora.targets: no linear layer is called {', '.join(absent[:4])}{more} (there are: {', '.join(have)})"
        )
    expected = {name for names in result.values() for name in names}
    return [name for name in linear if name in expected]


def is_lora(name: str) -> bool:
    """Whether a parameter name is part of a LoRA update."""
    return ".lora_" in name


def layer_of(name: str) -> str:
    """The layer that a LoRA parameter belongs to."""
    return name.partition(".lora_")[0]
