"""LoRA (arXiv:2106.09685) through peft."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlm.common.bounds import Count, Dropout, Positive, violations
from vlm.common.errors import ConfigError
from vlm.models.hf.blocked import without_quantisers

ADAPTER = "default"
"""peft's name of the adapter, part of the state-dict keys ``*.lora_A.default.weight``."""
ALL_LINEAR = "all-linear"
PLACEMENT = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Options of peft that decide which layers are adapted."""


@dataclass
class LoraOptions:
    """Options of ``lora:``; the update is scaled by ``alpha / r``.

    ``targets`` is a list of names, each a whole name or the end of one (``q_proj``, ``self_attn.q_proj``), or one
    regular expression that a whole name must match, or ``all-linear``: all but the head of an LLM, as in peft. Names
    are those of the linear layers within the part.

    Example: ``lora: {r: 8, alpha: 16, targets: [q_proj, v_proj]}``
    """

    r: Count = 8
    alpha: Positive = 16
    dropout: Dropout = 0.05
    targets: list[str] | str = field(default_factory=lambda: ["q_proj", "v_proj"])

    def __post_init__(self) -> None:
        """Raises ConfigError: a rank below 1, a dropout outside [0, 1), no target, a faulty regular expression."""
        if wrong := violations(self):
            raise ConfigError("; ".join(f"lora.{text}" for text in wrong), fix="lora: null means none")
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
    with without_quantisers():
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

    chosen = "|".join(map(re.escape, target_layers(module, options.targets)))  # a list would match endings again
    scale: Any = options.alpha  # peft takes any number, whatever its declared type
    config = LoraConfig(r=options.r, lora_alpha=scale, lora_dropout=options.dropout, target_modules=chosen, bias="none")
    with without_quantisers():  # the layers are quantised after LoRA is placed around them
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    part: Any
    for part in module.modules():
        # with a fused bias, timm's attention reads the weight of the layer and never calls the layer itself
        if hasattr(part, "qkv_bias_separate") and isinstance(part.qkv, BaseTunerLayer):
            part.qkv_bias_separate = True
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
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D  # the linear layers of GPT-2, transposed

    linear = [name for name, child in module.named_modules() if isinstance(child, nn.Linear | Conv1D)]
    if targets == ALL_LINEAR:
        head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
        inner = dict(module.named_modules())
        return [name for name in linear if inner[name] is not head]
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


def left_out(config: Mapping[str, Any], layers: Sequence[str], file: str) -> list[str]:
    """Those of ``layers`` (names in the whole model) that peft would not adapt by a published configuration.

    Raises ConfigError: peft does not accept its placement (``target_modules``, ``exclude_modules``, ...).
    """
    with without_quantisers():
        from peft import LoraConfig
        from peft.tuners.tuners_utils import check_target_module_exists

    given = {name: config[name] for name in PLACEMENT if config.get(name) is not None}
    if not given or str(given.get("target_modules", ALL_LINEAR)).lower() == ALL_LINEAR:
        return []  # by the class of the layer, or by the family of the model
    try:
        options = LoraConfig(**given)
        return [name for name in layers if not check_target_module_exists(options, name)]
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise ConfigError(f"{file}: {', '.join(given)} cannot be used ({error})") from error


def lora_state(layer: nn.Module) -> tuple[Any, ...]:
    """What the parameters of a layer do not tell: which of its updates are merged, active or off, and their scale."""
    peft = sys.modules.get("peft.tuners.tuners_utils")  # without it there is none
    if peft is None or not isinstance(layer, peft.BaseTunerLayer):
        return ()
    names, scales = layer.active_adapters, layer.scaling
    return tuple(layer.merged_adapters), tuple(names), layer.disable_adapters, tuple(scales.get(n) for n in names)


def is_lora(name: str) -> bool:
    """Whether a parameter name is part of a LoRA update."""
    return ".lora_" in name


def layer_of(name: str) -> str:
    """The layer that a LoRA parameter belongs to."""
    return name.partition(".lora_")[0]
