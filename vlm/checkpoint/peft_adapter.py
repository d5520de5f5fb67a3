"""Reading a published LoRA adapter (peft): its matrices, its scale, and the parameters that it holds in full."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.checkpoint.safe import read_json, read_tensors
from vlm.common.errors import WeightsError
from vlm.models.lora import ADAPTER, LoraOptions

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PEFT_PREFIX = "base_model.model."
"""Prefix that peft gives every name."""
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
        """The update of a layer is ``B A * alpha / r``."""
        return float(self.config["lora_alpha"])

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
    lora = {layer: (pair["A"], pair["B"]) for layer, pair in sides.items()}
    for layer, (first, second) in lora.items():
        _check_rank(f"{file}: {layer}", config.get("r"), tensors[first], tensors[second])
    return Adapter(file, config, tensors, lora)


def _read_config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    usual = {"peft_type": "LORA", "bias": "none"}
    keys = (*usual, "fan_in_fan_out", "use_dora", "use_rslora", "rank_pattern")
    odd = {key: config[key] for key in keys if config.get(key) and config[key] != usual.get(key)}
    if odd:
        text = ", ".join(f"{k} {v!r}" for k, v in odd.items())
        raise WeightsError(f"{file}: {text}; only plain LoRA without biases can be read")
    if not isinstance(config.get("lora_alpha"), int | float):
        raise WeightsError(f"{file}: lora_alpha is {config.get('lora_alpha')!r}, expected a number")
    return config


def _check_rank(layer: str, declared: int | None, a: Tensor, b: Tensor) -> None:
    shapes = f"lora_A {list(a.shape)}, lora_B {list(b.shape)}"
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise WeightsError(f"{layer}: {shapes} do not fit together", fix="download it again")
    if declared is not None and declared != a.shape[0]:
        raise WeightsError(
            f"{layer} has rank {a.shape[0]} ({shapes}), {CONFIG} says r {declared}",
            fix="use adapter_config.json and weights of one adapter",
        )
