"""Reading a published LoRA adapter (peft): its matrices, its scale, and the parameters that it holds in full."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.checkpoint.safe import read_json, read_tensors
from vlm.common.errors import WeightsError
from vlm.models.lora import ADAPTER, LoraOptions, left_out

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PEFT_PREFIX = "base_model.model."
"""Prefix that peft gives every name."""
USUAL = {"peft_type": "LORA", "bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 16}
"""Options with a usual value that means nothing special."""
KEEPS_THE_BASE = ("gaussian", "orthogonal", "eva")
"""Initialisations that leave the base as it is, so that the saved matrices are all there is to apply."""
NO_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("lora_alpha", "lora_dropout", "modules_to_save", "r", "use_rslora"),  # read here
    *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),  # placement: checked, see left_out
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),  # of what init_lora_weights names
    *("fan_in_fan_out", "runtime_config"),  # peft itself goes by the class of the layer
)
"""Options that do not change what saved matrices mean, or that are read here."""
_MATRIX = re.compile(rf"(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.{ADAPTER})?\.weight")


@dataclass
class Adapter:
    """An adapter folder."""

    file: Path  # its weights
    config: dict[str, Any]  # adapter_config.json
    tensors: dict[str, Tensor]  # by name without peft's prefix; mapped from disk
    lora: dict[str, tuple[str, str]]  # layer -> (name of A, name of B); A is ``[r, in]``, B ``[out, r]``

    @property
    def folder(self) -> Path:
        """The folder."""
        return self.file.parent

    @property
    def alpha(self) -> float:
        """The update of a layer is ``B A * alpha / r``; rank-stabilised LoRA divides by the root of ``r``."""
        alpha = float(self.config["lora_alpha"])
        return alpha * math.sqrt(self.config["r"]) if self.config.get("use_rslora") else alpha

    def rank(self, layer: str) -> int:
        """Rank of a layer, from the shape of its matrix A."""
        return self.tensors[self.lora[layer][0]].shape[0]

    def whole(self) -> dict[str, Tensor]:
        """Everything but LoRA matrices: parameters that the adapter holds in full."""
        parts = {name for pair in self.lora.values() for name in pair}
        return {name: tensor for name, tensor in self.tensors.items() if name not in parts}

    def options(self, prefix: str) -> LoraOptions | None:
        """LoRA of the layers below ``prefix``, if any. Raises WeightsError if they have different ranks."""
        layers = [name for name in self.lora if name.startswith(prefix)]
        if not layers:
            return None
        ranks = sorted({self.rank(layer) for layer in layers})
        if len(ranks) > 1:
            raise WeightsError(f"{self.folder}: layers below {prefix} have ranks {ranks}; one rank per part is allowed")
        dropout = float(self.config.get("lora_dropout") or 0.0)
        return LoraOptions(ranks[0], self.alpha, dropout, [layer.removeprefix(prefix) for layer in layers])


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter folder, weights through the restricted loader.

    Raises WeightsError if a file is missing or damaged, or the adapter is not plain LoRA of the declared rank.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise WeightsError(f"{folder}: no {' or '.join(WEIGHTS)}", fix="is the download complete?")
    tensors = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in read_tensors(file).items()}
    sides: dict[str, dict[str, str]] = {}
    for name in tensors:
        if match := _MATRIX.fullmatch(name):
            sides.setdefault(match["layer"], {})[match["side"]] = name
    single = [layer for layer, pair in sides.items() if len(pair) < 2]
    if single:
        raise WeightsError(f"{file}: {single[0]} has only one of lora_A and lora_B ({len(single)} such layers)")
    strange = [name for name in tensors if ".lora_" in name and not _MATRIX.fullmatch(name)]
    if strange:
        raise WeightsError(
            f"{file}: {strange[0]} ({len(strange)} such tensors); only plain LoRA of linear layers can be read",
            fix="merge it with peft (merge_and_unload)",
        )
    if left := left_out(config, list(sides), str(folder / CONFIG)):
        raise WeightsError(
            f"{file}: {left[0]} has LoRA ({len(left)} such layers), but {CONFIG} leaves it out",
            fix="use adapter_config.json and weights of one adapter",
        )
    lora = {layer: (pair["A"], pair["B"]) for layer, pair in sides.items()}
    for layer, (first, second) in lora.items():
        _check_rank(f"{file}: {layer}", config.get("r"), tensors[first], tensors[second])
    return Adapter(file, config, tensors, lora)


def _read_config(file: Path) -> dict[str, Any]:
    """``adapter_config.json``. Raises WeightsError for every option that would change the result and is not applied."""
    config = read_json(file)
    odd = [f"{key} {value!r}" for key, value in config.items() if not _is_plain(key, value)]
    if odd:
        raise WeightsError(
            f"{file}: {', '.join(odd)}; only plain LoRA without biases can be read",
            fix="merge it with peft (merge_and_unload), or save it as plain LoRA: save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...) converts pissa, olora and corda",
        )
    for key in ("lora_alpha", "lora_dropout", "r"):
        value = config.get(key, None if key == "lora_alpha" else 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise WeightsError(f"{file}: {key} is {value!r}, expected a number")
    return config


def _is_plain(key: str, value: Any) -> bool:
    """Whether an option leaves the update at ``B A * alpha / r`` on an unchanged base."""
    if key in NO_EFFECT or value in (None, False, 0, "", [], {}):
        return True
    if key == "init_lora_weights":
        return value is True or value in KEEPS_THE_BASE
    return key in USUAL and value == USUAL[key]


def _check_rank(layer: str, declared: int | None, a: Tensor, b: Tensor) -> None:
    shapes = f"lora_A {list(a.shape)}, lora_B {list(b.shape)}"
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise WeightsError(f"{layer}: {shapes} do not fit together", fix="download it again")
    if declared and declared != a.shape[0]:
        raise WeightsError(
            f"{layer} has rank {a.shape[0]} ({shapes}), {CONFIG} says r {declared}",
            fix="use adapter_config.json and weights of one adapter",
        )
