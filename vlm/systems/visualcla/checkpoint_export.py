"""What a run trained, as a released folder of VisualCLA: one adapter over the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.peft_adapter import CONFIG, PEFT_PREFIX
from vlm.checkpoint.safe import copy_files, read_json, write_json
from vlm.common.errors import WeightsError
from vlm.common.registry import register_export
from vlm.inference.export import refuse_existing
from vlm.inference.load import load_parts
from vlm.models.bridges.bert_resampler import PUBLISHED
from vlm.models.lora import ADAPTER, is_lora
from vlm.models.vlm import VLM
from vlm.systems.visualcla.checkpoint_keys import CLASS_DEFAULTS, TOKENIZER, key_map

MODULES = ("embed_tokens", "lm_head", "visual_resampler", "image_projection_layer")
TEXTS = (*TOKENIZER, "preprocessor_config.json")


@register_export("visualcla-delta")
class DeltaExport:
    """Folder of VisualCLA: an adapter over the whole model."""

    def write(self, source: Path, target: Path) -> list[str]:
        """See :meth:`vlm.inference.export.ModelExport.write`."""
        refuse_existing(target)
        model, processor, cfg, _ = load_parts(source, "cpu")
        text = processor.text_cfg
        ids = {token: processor.tokenizer.id_of(token) for token in text.special_tokens}
        added = {token: index for token, index in ids.items() if index is not None}
        names = export_delta(model, target, Path(text.tokenizer or cfg.model.llm.config.path), added)
        return [f"{target}: adapter of {len(names)} tensors, configurations and tokenizer"]


def export_delta(
    model: VLM, folder: Path, tokenizer: Path | None = None, added: dict[str, int] | None = None
) -> list[str]:
    """Write adapter, configurations and tokenizer.

    Args:
        model: a composition of VisualCLA with LoRA.
        folder: new.
        tokenizer: folder whose tokenizer files are copied.
        added: special tokens and ids that the composition has; those that the folder lacks are written too.

    Returns:
        The names written, with peft's prefix.

    Raises:
        WeightsError: another composition, something trains that the layout has no name for, LoRA of two ranks or
            scales, or a folder that exists.
    """
    refuse_existing(folder)
    names = key_map(model)
    state: dict[str, Tensor] = {}
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, tensor in model.state_dict().items():
        if name in trains or is_lora(name) or name.startswith("bridge."):
            theirs = names.theirs(name)
            if theirs is None or "base_layer" in name:
                raise WeightsError(f"{name} trains, but a delta of VisualCLA has no such part")
            theirs = theirs.replace(f".{ADAPTER}.weight", ".weight") if is_lora(name) else theirs
            state[PEFT_PREFIX + theirs] = tensor.detach().cpu().clone()
    adapter = _adapter_config(model)
    folder.mkdir(parents=True)
    torch.save(state, folder / "adapter_model.bin")
    write_json(folder / CONFIG, adapter)
    write_json(folder / "config.json", _config(model))
    if tokenizer is not None:
        copy_files(TEXTS, tokenizer, folder)
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
    parts = {"vision_model.vision_model.": model.vision, "text_model.": model.llm}
    options = {prefix: part.config.lora for prefix, part in parts.items() if part.config.lora is not None}
    scales = {(o.r, o.alpha) for o in options.values()}
    if len(scales) != 1:
        raise WeightsError(
            f"LoRA has (r, alpha) {sorted(scales) or 'nowhere'}; a delta of VisualCLA holds exactly one pair",
            fix="train encoder and LLM with the same lora.r and lora.alpha",
        )
    patterns = [
        f".*{prefix.split('.')[0]}.*\\.({'|'.join(_endings(part.model))})"
        for prefix, part in parts.items()
        if prefix in options
    ]
    ((r, alpha),) = scales
    one = next(iter(options.values()))
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": one.dropout,
        "modules_to_save": list(MODULES),
        "peft_type": "LORA",
        "r": r,
        "target_modules": f"({'|'.join(patterns)})$",
        "task_type": "CAUSAL_LM",
    }


def _endings(module: Any) -> list[str]:
    """Last names of the layers that LoRA wraps, in the order of the module."""
    names = [name.split(".") for name, _ in module.named_modules() if name.endswith(".base_layer")]
    return list(dict.fromkeys(pieces[-2] for pieces in names))


def _config(model: VLM) -> dict[str, Any]:
    """The published config.json: sizes of all parts."""
    resampler = model.bridge[0]
    stated = {**PUBLISHED, "hidden_size": resampler.out_dim}
    stated |= {k: v for k, v in vars(resampler.config).items() if v is not None}
    text = model.llm.model.config.to_dict()
    return {
        "architectures": ["VisualCLAModel"],
        "initializer_range": 0.02,
        "layer_norm_eps": CLASS_DEFAULTS["layer_norm_eps"],
        "model_type": "visualcla",
        "text_config": json.loads(json.dumps(text, default=str)),
        "tie_word_embeddings": False,
        "use_visual_resampler": True,
        "vision_config": json.loads(json.dumps(model.vision.model.config.to_dict(), default=str)),
        "visual_resampler_config": stated,
        "vocab_size": model.llm.vocab_size,
    }
