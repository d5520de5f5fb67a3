"""Names in the published files of VisualCLA, and what its config.json says about a composition."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.checkpoint.formats.base import bridge_index
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import read_json
from vlm.common.errors import WeightsError
from vlm.models.bridges.bert_resampler import BertResampler
from vlm.models.bridges.linear import Linear
from vlm.models.lora import ADAPTER
from vlm.models.vlm import VLM

VISION = "vision_model.vision_model."
TEXT = "text_model."
RESAMPLER = "visual_resampler."
PROJECTION = "image_projection_layer."
EMBEDDINGS, HEAD = "text_model.model.embed_tokens.weight", "text_model.lm_head.weight"
ADDED = "added_tokens.json"
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", ADDED)
CLASS_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "num_query_tokens": 32,
}
"""Values of keys that ``visual_resampler_config`` omits (defaults of the published configuration class)."""
RESAMPLER_LAYER = (
    ("crossattention.self.query", "query"),
    ("crossattention.self.key", "key"),
    ("crossattention.self.value", "value"),
    ("crossattention.output.dense", "attention_out"),
    ("crossattention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "up"),
    ("output.dense", "down"),
    ("output.LayerNorm", "norm"),
)


def key_map(model: VLM) -> KeyMap:
    """Names of the whole published model <-> ours; old files' buffers are ignored.

    Raises:
        WeightsError: the composition has no such resampler or projection.
    """
    resampler, linear = bridge_index(model, BertResampler, None), bridge_index(model, Linear, None)
    if resampler is None or linear is None:
        raise WeightsError(
            "files of VisualCLA fill a bridge of bert_resampler and linear; this composition has another"
        )
    pairs: list[tuple[str, str]] = []
    for theirs, ours in ((VISION, "vision.model."), (TEXT, "llm.model.")):
        for matrix in ("lora_A", "lora_B"):
            name = f"{ours}{{rest}}.{matrix}.{ADAPTER}.weight"
            pairs += [(f"{theirs}{{rest}}.{matrix}.{end}", name) for end in ("weight", f"{ADAPTER}.weight")]
    inner = f"{RESAMPLER}encoder.layer.{{i}}"
    mine = f"bridge.{resampler}"
    pairs += [(f"{inner}.{theirs}.{{end}}", f"{mine}.layers.{{i}}.{ours}.{{end}}") for theirs, ours in RESAMPLER_LAYER]
    pairs += [
        (f"{RESAMPLER}query_embeddding", f"{mine}.query_tokens"),  # spelled like this in the files
        (f"{RESAMPLER}pooler.dense.{{end}}", f"{mine}.pooler.{{end}}"),
        (f"{PROJECTION}{{end}}", f"bridge.{linear}.proj.{{end}}"),
        (f"{VISION}{{rest}}", "vision.model.{rest}"),
        (f"{TEXT}{{rest}}", "llm.model.{rest}"),
    ]
    return KeyMap(tuple(pairs), ("*.rotary_emb.inv_freq", "*.position_ids"))


def stated_sizes(file: Path) -> dict[str, Any]:
    """What a published config.json says about the resampler, with the class's defaults.

    Raises:
        WeightsError: no usable config.json, no resampler, or one with another activation.
    """
    declared = read_json(file)
    if not declared.get("use_visual_resampler", True):
        raise WeightsError(f"{file}: use_visual_resampler is false; only models with the resampler can be read")
    sizes = {k: v for k, v in (declared.get("visual_resampler_config") or {}).items() if v is not None}
    if sizes.get("hidden_act", "gelu") != "gelu":
        raise WeightsError(
            f"{file}: visual_resampler_config.hidden_act is {sizes['hidden_act']!r}; only 'gelu' can be read"
        )
    return CLASS_DEFAULTS | sizes


def bridge_names(file: Path) -> set[str]:
    """Published names of the resampler and the projection that a config.json states.

    Raises:
        WeightsError: see :func:`stated_sizes`.
    """
    layers = range(stated_sizes(file)["num_hidden_layers"])
    linear = [f"{RESAMPLER}encoder.layer.{i}.{theirs}" for i in layers for theirs, _ in RESAMPLER_LAYER]
    linear += [f"{RESAMPLER}pooler.dense", PROJECTION.removesuffix(".")]
    return {f"{RESAMPLER}query_embeddding", *(f"{name}.{end}" for name in linear for end in ("weight", "bias"))}


def complete_bridge(model_cfg: Any, folder: Path) -> Any:
    """A copy of ``model_cfg`` whose resampler has the sizes of the folder's config.json where it leaves them open.

    Raises:
        WeightsError: no usable config.json, or the composition states something else.
    """
    file = folder / "config.json"
    sizes = stated_sizes(file)
    done = copy.copy(model_cfg)
    done.bridge = list(model_cfg.bridge)
    for index, part in enumerate(done.bridge):
        if isinstance(part.config, BertResampler.Config):
            result = {name: sizes[name] for name in CLASS_DEFAULTS}
            done.bridge[index] = fill(part, result, f"model.bridge.{index}", file)
    return done


def fill(part: Any, found: Mapping[str, Any], where: str, file: Path) -> Any:
    """A copy of ``part`` with options that are null set to ``found``.

    Raises:
        WeightsError: an option is set to something else.
    """
    config = part.config
    for name, value in found.items():
        stated = getattr(config, name)
        if stated is not None and stated != value:
            raise WeightsError(
                f"{file}: {name} is {value!r}, the composition states {where}.{name} {stated!r}",
                fix=f"leave {where}.{name} out (null) to take it from the file",
            )
    done = copy.copy(part)
    done.config = dataclasses.replace(config, **found)
    return done
