"""A VisualCLA delta as the two folders that text-generation-webui loads: the text side, and the image side."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.peft_adapter import CONFIG, PEFT_PREFIX, Adapter, read_adapter
from vlm.checkpoint.safe import copy_files, read_json, write_json
from vlm.common.errors import WeightsError
from vlm.common.registry import register_export
from vlm.inference.export import refuse_existing
from vlm.systems.visualcla.checkpoint import PROJECTION, RESAMPLER, TEXT, TOKENIZER, VISION
from vlm.systems.visualcla.checkpoint_export import DeltaExport
from vlm.systems.visualcla.merge import PREPROCESSOR

TEXT_FOLDER, VISION_FOLDER = "{}_text_lora_model_tgwebui", "{}_vision_lora_model_tgwebui"
LEVEL = "vision_model."
"""What that program's names keep of the two levels ``vision_model.vision_model.`` of the published ones."""
TEXT_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj")
"""In the order of the published conversion."""


@register_export("text-generation-webui")
class WebuiExport:
    """Two folders of VisualCLA, text and vision, as text-generation-webui loads them."""

    def write(self, source: Path, target: Path) -> list[str]:
        """The two folders; ``source`` may also be the folder of a delta. See :class:`~vlm.inference.export.Export`."""
        with tempfile.TemporaryDirectory() as work:
            delta = source
            if not (source / CONFIG).is_file():
                delta = Path(work) / source.resolve().name
                DeltaExport().write(source, delta)
            return [str(folder) for folder in export_webui(delta, target)]


def export_webui(delta: str | Path, target: str | Path) -> tuple[Path, Path]:
    """Write the text folder and the vision folder, named after ``delta``, below ``target``.

    Raises:
        WeightsError: not a delta of VisualCLA, a tensor of an unknown part, or a folder that exists.
    """
    delta = Path(delta)
    adapter = read_adapter(delta)
    sizes = read_json(delta / "config.json").get("visual_resampler_config")
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in (TEXT, VISION, RESAMPLER, PROJECTION)}
    for name, tensor in adapter.tensors.items():
        prefix = next((p for p in parts if name.startswith(p)), None)
        if prefix is None:
            raise WeightsError(f"{delta}: {name} does not belong to any part of VisualCLA")
        parts[prefix][name.removeprefix(prefix)] = tensor
    empty = [prefix for prefix, tensors in parts.items() if not tensors]
    if empty or not isinstance(sizes, dict):
        lacking = ", ".join([f"tensors {p}*" for p in empty] or ["visual_resampler_config"])
        raise WeightsError(f"{delta}: no {lacking}; this is not a delta of VisualCLA")
    text, vision = (Path(target) / name.format(delta.resolve().name) for name in (TEXT_FOLDER, VISION_FOLDER))
    refuse_existing(text)
    refuse_existing(vision)
    for folder in (text, vision):
        folder.mkdir(parents=True)
    _save({PEFT_PREFIX + name: t for name, t in parts[TEXT].items()}, text / "adapter_model.bin")
    _save({PEFT_PREFIX + LEVEL + name: t for name, t in parts[VISION].items()}, vision / "adapter_model.bin")
    _save(parts[RESAMPLER], vision / "visual_resampler_model.bin")
    _save(parts[PROJECTION], vision / "image_projection_layer_model.bin")
    write_json(vision / "visual_resampler_config.json", sizes)
    write_json(text / CONFIG, _text_config(adapter))
    write_json(vision / CONFIG, _vision_config(adapter))
    copy_files(TOKENIZER, delta, text)
    copy_files([PREPROCESSOR], delta, vision)
    return text, vision


def _text_config(adapter: Adapter) -> dict[str, Any]:
    layers = [name for name in adapter.lora if name.startswith(TEXT)]
    have = {name.rpartition(".")[2] for name in layers}
    names = [n for n in TEXT_NAMES if n in have] + sorted(have - set(TEXT_NAMES))
    whole = [n for n in ("embed_tokens", "lm_head") if any(f".{n}.weight" in name for name in adapter.whole())]
    targets = rf".*(self_attn|mlp).*({'|'.join(map(re.escape, names))})$"
    return adapter.config | {"modules_to_save": whole or None, "target_modules": targets}


def _vision_config(adapter: Adapter) -> dict[str, Any]:
    targets = adapter.config.get("target_modules")
    targets = targets.replace(VISION[:-1], LEVEL[:-1]) if isinstance(targets, str) else targets
    return adapter.config | {"modules_to_save": None, "target_modules": targets}


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, file)
