"""What a run trained, in the layouts of VisualCLA.

``visualcla-delta``: the released folder, one adapter over the whole model. ``text-generation-webui``: the two folders
that this program loads, the text side and the image side of such a delta.
"""

from __future__ import annotations

import json
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
from vlm.inference.export import refuse_existing, trained_tensors
from vlm.inference.load import load_parts
from vlm.models.bridges.bert_resampler import PUBLISHED
from vlm.models.lora import ADAPTER, is_lora
from vlm.models.vlm import VLM
from vlm.systems.visualcla.checkpoint import (
    BRIDGE,
    CLASS_DEFAULTS,
    PREPROCESSOR,
    PROJECTION,
    RESAMPLER,
    TEXT,
    TOKENIZER,
    VISION,
    key_map,
)

TEXT_FOLDER, VISION_FOLDER = "{}_text_lora_model_tgwebui", "{}_vision_lora_model_tgwebui"
LEVEL = "vision_model."
"""What that program's names keep of the two levels ``vision_model.vision_model.`` of the published ones."""
TEXT_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj")
"""In the order of the published conversion."""


@register_export("visualcla-delta")
class DeltaExport:
    """Folder of VisualCLA: an adapter over the whole model."""

    def write(self, source: Path, target: Path) -> list[str]:
        """See :meth:`vlm.inference.export.ModelExport.write`."""
        refuse_existing(target)
        model, processor, cfg, _ = load_parts(source, "cpu", quantised=False)
        text = processor.text_cfg
        ids = {token: processor.tokenizer.id_of(token) for token in text.special_tokens}
        added = {token: index for token, index in ids.items() if index is not None}
        names = export_delta(model, target, Path(text.tokenizer or cfg.model.llm.config.path), added)
        return [f"{target}: adapter of {len(names)} tensors, configurations and tokenizer"]


def export_delta(
    model: VLM, folder: Path, tokenizer: Path | None = None, added: dict[str, int] | None = None
) -> list[str]:
    """Write adapter, configurations and tokenizer; returns the names written, with peft's prefix.

    Args:
        model: a composition of VisualCLA with LoRA.
        folder: new.
        tokenizer: folder whose tokenizer files are copied.
        added: ids of special tokens of the composition; those that the tokenizer files lack are added to them.

    Raises:
        WeightsError: another composition, something trains that the layout has no name for, LoRA of two ranks or
            scales, or a folder that exists.
    """
    refuse_existing(folder)
    names = key_map(model)
    lora = tuple(filter(is_lora, model.state_dict()))
    theirs = {name: names.theirs(name) for name in model.state_dict() if "base_layer" not in name}
    published = trained_tensors(model, theirs.get, "deltas of VisualCLA", whole=("bridge.", *lora))
    state = {PEFT_PREFIX + name.replace(f".{ADAPTER}.weight", ".weight"): t for name, t in published.items()}
    adapter = _adapter_config(model)
    folder.mkdir(parents=True)
    torch.save(state, folder / "adapter_model.bin")
    write_json(folder / CONFIG, adapter)
    write_json(folder / "config.json", _config(model))
    if tokenizer is not None:
        copy_files((*TOKENIZER, PREPROCESSOR), tokenizer, folder)
    if added:
        _write_added(folder, added)
    return list(state)


def _write_added(folder: Path, added: dict[str, int]) -> None:
    """Add tokens to added_tokens.json and special_tokens_map.json, as plain strings, where they are not there."""
    files = folder / "added_tokens.json", folder / "special_tokens_map.json"
    known, special = (read_json(file) if file.is_file() else {} for file in files)
    if set(added) <= set(known):
        return
    listed = special.get("additional_special_tokens") or []
    special["additional_special_tokens"] = [*listed, *(token for token in added if token not in known)]
    write_json(files[0], known | added)
    write_json(files[1], special)


def _adapter_config(model: VLM) -> dict[str, Any]:
    """peft's configuration; its targets are a regular expression over the names of the whole model."""
    parts = {"vision_model": model.vision, "text_model": model.llm}
    options = {name: part.config.lora for name, part in parts.items() if part.config.lora is not None}
    scales = {(o.r, o.alpha) for o in options.values()}
    if len(scales) != 1:
        raise WeightsError(
            f"LoRA has (r, alpha) {sorted(scales) or 'nowhere'}; a delta of VisualCLA holds exactly one pair",
            fix="train encoder and LLM with the same lora.r and lora.alpha",
        )
    patterns = []
    for name in options:
        wrapped = [n.split(".")[-2] for n, _ in parts[name].model.named_modules() if n.endswith(".base_layer")]
        patterns.append(f".*{name}.*\\.({'|'.join(dict.fromkeys(wrapped))})")
    one = next(iter(options.values()))
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(one.alpha) if float(one.alpha).is_integer() else one.alpha,
        "lora_dropout": one.dropout,
        "modules_to_save": ["embed_tokens", "lm_head", "visual_resampler", "image_projection_layer"],
        "peft_type": "LORA",
        "r": one.r,
        "target_modules": f"({'|'.join(patterns)})$",
        "task_type": "CAUSAL_LM",
    }


def _config(model: VLM) -> dict[str, Any]:
    """The published config.json: sizes of all parts."""
    resampler = model.bridge[0]
    stated = {**PUBLISHED, "hidden_size": resampler.out_dim}
    stated |= {k: v for k, v in vars(resampler.config).items() if v is not None}
    text, vision = (json.loads(json.dumps(p.model.config.to_dict(), default=str)) for p in (model.llm, model.vision))
    return {
        "architectures": ["VisualCLAModel"],
        "initializer_range": 0.02,
        "layer_norm_eps": CLASS_DEFAULTS["layer_norm_eps"],
        "model_type": "visualcla",
        "text_config": text,
        "tie_word_embeddings": False,
        "use_visual_resampler": True,
        "vision_config": vision,
        "visual_resampler_config": stated,
        "vocab_size": model.llm.vocab_size,
    }


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

    Raises WeightsError: not a delta of VisualCLA, a tensor of an unknown part, or a folder that exists.
    """
    delta = Path(delta)
    adapter = read_adapter(delta)
    sizes = read_json(delta / "config.json").get("visual_resampler_config")
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in (TEXT, VISION, *BRIDGE)}
    for name, tensor in adapter.tensors.items():
        prefix = next((p for p in parts if name.startswith(p)), None)
        if prefix is None:
            raise WeightsError(f"{delta}: {name} does not belong to any part of VisualCLA")
        parts[prefix][name.removeprefix(prefix)] = tensor.clone()
    empty = [prefix for prefix, tensors in parts.items() if not tensors]
    if empty or not isinstance(sizes, dict):
        lacking = ", ".join([f"tensors {p}*" for p in empty] or ["visual_resampler_config"])
        raise WeightsError(f"{delta}: no {lacking}; this is not a delta of VisualCLA")
    text, vision = (Path(target) / name.format(delta.resolve().name) for name in (TEXT_FOLDER, VISION_FOLDER))
    for folder in (text, vision):
        refuse_existing(folder)
    text.mkdir(parents=True)
    vision.mkdir(parents=True)
    torch.save({PEFT_PREFIX + name: t for name, t in parts[TEXT].items()}, text / "adapter_model.bin")
    torch.save({PEFT_PREFIX + LEVEL + name: t for name, t in parts[VISION].items()}, vision / "adapter_model.bin")
    torch.save(parts[RESAMPLER], vision / "visual_resampler_model.bin")
    torch.save(parts[PROJECTION], vision / "image_projection_layer_model.bin")
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
