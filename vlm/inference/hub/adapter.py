"""LoRA beside a folder of transformers, as an adapter of peft."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.peft_adapter import CONFIG, PEFT_PREFIX, WEIGHTS
from vlm.checkpoint.safe import write_json
from vlm.checkpoint.stream import write_safetensors
from vlm.common.errors import WeightsError
from vlm.inference.hub.contents import Contents
from vlm.inference.hub.forms import Form
from vlm.models.lora import ADAPTER


def write_adapter(contents: Contents, form: Form, folder: Path) -> int:
    """Write adapter_config.json and the matrices; returns the number of layers.

    Raises WeightsError: the form has no layer of its own for one that LoRA changes.
    """
    weights = contents.weights
    names = form.layers(contents)
    shapes: dict[str, Tensor] = {}
    makers: dict[str, tuple[str, int]] = {}
    sizes: dict[str, tuple[int, float]] = {}
    transposed = False
    for layer in weights.lora:
        theirs = names.get(layer)
        if theirs is None:
            raise WeightsError(f"{form.architecture} has no layer for the LoRA of {layer}", fix="leave --lora out")
        module: Any = contents.model.get_submodule(layer)
        transposed = transposed or bool(module.fan_in_fan_out)
        sizes[theirs] = module.r[ADAPTER], module.scaling[ADAPTER] * module.r[ADAPTER]
        for number, (side, inner) in enumerate((("A", module.lora_A), ("B", module.lora_B))):
            name = f"{PEFT_PREFIX}{theirs}.lora_{side}.weight"
            shapes[name] = torch.empty_like(inner[ADAPTER].weight, dtype=torch.float32, device="meta")
            makers[name] = layer, number
    folder.mkdir()
    write_safetensors(folder / WEIGHTS[0], shapes, lambda name: weights.matrices(makers[name][0])[makers[name][1]])
    rank, alpha = Counter(sizes.values()).most_common(1)[0][0]
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": None,
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {n: r for n, (r, _) in sizes.items() if r != rank},
            "alpha_pattern": {n: a for n, (_, a) in sizes.items() if a != alpha},
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": transposed,
            "inference_mode": True,
            "target_modules": list(sizes),
            "base_model_name_or_path": None,
        },
    )
    return len(sizes)
