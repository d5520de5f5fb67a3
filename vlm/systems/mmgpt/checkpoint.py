"""``mmgpt-lora-v0-release.pt`` and what Multimodal-GPT's trainer saves: LoRA of the LLM and of the cross-attention.

Names as in the repository open-mmlab/Multimodal-GPT, which wraps OpenFlamingo's model.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.peft_adapter import PEFT_PREFIX
from vlm.checkpoint.restricted_unpickler import plain, read_without_code
from vlm.checkpoint.safe import read_file
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format, register_export
from vlm.inference.export import ModelExport, trained_tensors
from vlm.models.inserts.gated_xattn import GatedCrossAttention
from vlm.models.lora import LoraOptions, is_lora
from vlm.models.vlm import VLM
from vlm.systems.open_flamingo import checkpoint as openflamingo

SETTINGS = "tuning_config"


@register_checkpoint_format("mmgpt_lora")
class MmgptLora(CheckpointFormat):
    """Fills every LoRA matrix, and whatever else was tuned and saved with them.

    Names with or without ``module.``, of peft before or since 0.3; settings flat or one level deeper, plain or
    pickled as an object of a configuration library, whose code is not run. Options of ``lora`` that the composition
    leaves open (null) are taken from the file.
    """

    shape_hint = "the file is of another base model"
    lora_hint = "the rank of LoRA in the composition differs from the file's"

    def infer_config(self, model_cfg: Any, path: Path) -> Any:
        """See :class:`CheckpointFormat`."""
        content = read_content(path)
        declared = settings(content)
        tensors = openflamingo.read_state(content, str(path))
        done = copy.copy(model_cfg)
        done.llm = _with_lora(done.llm, declared, _layers(tensors, ".decoder_layer."), "model.llm", path)
        done.inserts = list(done.inserts)
        for i, part in enumerate(done.inserts):
            if isinstance(part.config, GatedCrossAttention.Config):
                layers = _layers(tensors, ".gated_cross_attn_layer.")
                done.inserts[i] = _with_lora(part, declared, layers, f"model.inserts.{i}", path)
        return done

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by published name."""
        return openflamingo.read_state(read_content(path), str(path))

    def prepare(self, model: VLM, tensors: Mapping[str, Tensor], file: str) -> Mapping[str, Tensor]:
        """See :class:`CheckpointFormat`."""
        return openflamingo.without_second_names(tensors, openflamingo.layer_path(model), file)

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        return openflamingo.key_map(model, file)

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> list[str]:
        """Every LoRA matrix."""
        return [key for key in model.state_dict() if is_lora(key)]


def read_content(path: Path) -> Any:
    """What a file holds, settings objects as dicts. Raises WeightsError if it is damaged."""
    return plain(read_without_code(path)) if zipfile.is_zipfile(path) else read_file(path)


def settings(content: Any) -> dict[str, Any]:
    """``tuning_config`` of a file, at the top or one level deeper; empty when it has none."""
    result: dict[str, Any] = {}
    while isinstance(content, dict) and isinstance(content.get(SETTINGS), dict):
        result = content = content[SETTINGS]
    return result


def _layers(tensors: Mapping[str, Tensor], below: str) -> dict[str, int]:
    """Rank of LoRA by layer name (without its number) of the layers whose name has ``below``."""
    return {
        name.partition(below)[2].partition(".lora_A.")[0]: tensor.shape[0]
        for name, tensor in tensors.items()
        if below in name and ".lora_A." in name
    }


def _with_lora(part: Any, declared: Mapping[str, Any], layers: Mapping[str, int], where: str, path: Path) -> Any:
    """``part`` with the file's LoRA. Raises WeightsError if the composition states another rank or scale."""
    if not layers:
        return part
    rank = next(iter(layers.values()))
    alpha = float(declared.get("lora_alpha") or rank)
    stated = part.config.lora
    if stated is None:
        targets = declared.get("lora_target_modules") or ()
        targets = [t for t in targets if any(f".{name}".endswith(f".{t}") for name in layers)]
        options = LoraOptions(rank, alpha, float(declared.get("lora_dropout") or 0.0), targets or sorted(layers))
        part = copy.copy(part)
        part.config = dataclasses.replace(part.config, lora=options)
    elif (stated.r, stated.alpha) != (rank, alpha):
        raise WeightsError(
            f"{path}: LoRA of rank {rank} and alpha {alpha:g}, "
            f"the composition states {where}.lora with rank {stated.r} and alpha {stated.alpha:g}",
            fix="state the file's values, or leave lora out (null) to take them from the file",
        )
    return part


def published_names(model: VLM) -> dict[str, str | None]:
    """Our name -> the name that Multimodal-GPT's trainer gives it (or None), of what trains."""
    names, plain_lm = openflamingo.key_map(model, "export"), re.compile(f"^{re.escape(openflamingo.LM)}")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    theirs = {ours: names.theirs(ours.replace(".base_layer.", ".")) for ours in trained}
    return {ours: name and plain_lm.sub(openflamingo.LM + PEFT_PREFIX, name) for ours, name in theirs.items()}


@register_export("mmgpt")
class MmgptExport(ModelExport):
    """One .pt file of Multimodal-GPT: LoRA and its settings."""

    def save(self, model: VLM, path: Path) -> list[str]:
        """Write ``module.`` before the names and plain settings next to them; see :class:`ModelExport`."""
        state = trained_tensors(model, published_names(model).get, "files of Multimodal-GPT")
        tuned = [name for name in state if not is_lora(name)]
        saved = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({openflamingo.STATE: saved, SETTINGS: _settings_of(model, tuned)}, path)
        return list(state)


def _settings_of(model: VLM, unfrozen: list[str]) -> dict[str, Any]:
    parts = [model.llm, *(insert for insert in model.inserts if isinstance(insert, GatedCrossAttention))]
    present = [part.config.lora for part in parts if part.config.lora is not None]
    lora = present[0] if present else LoraOptions()
    return {
        "lora": bool(present),
        "lora_target_modules": [t for o in present for t in o.targets],
        "lora_r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "vis": False,
        "unfrozen": unfrozen,
    }
