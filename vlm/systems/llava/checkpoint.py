"""Folders of LLaVA as transformers saves them (``llava-hf/llava-1.5-7b-hf``): the weight format and the composition."""

from __future__ import annotations

from typing import Any

from vlm.checkpoint.formats.base import bridge_index
from vlm.checkpoint.formats.published import PublishedModel, llm_pairs
from vlm.checkpoint.keymap import KeyMap
from vlm.common.errors import ConfigError, WeightsError
from vlm.common.registry import register_architecture, register_checkpoint_format
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.folder import ModelFolder
from vlm.models.bridges.mlp import MLP
from vlm.models.published import sizes
from vlm.models.vlm import VLM


@register_checkpoint_format("llava")
class LlavaFolder(PublishedModel):
    """Vision encoder, MLP and LLM."""

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """Names of transformers' LlavaForConditionalGeneration and ours. Raises WeightsError: no MLP."""
        index = bridge_index(model, MLP)
        if index is None:
            raise WeightsError(f"{file}: format llava fills a bridge mlp, the composition has none")
        theirs, ours = "model.multi_modal_projector", f"bridge.{index}.layers"
        return KeyMap(
            (
                (f"{theirs}.linear_1.{{rest}}", f"{ours}.0.{{rest}}"),
                (f"{theirs}.linear_2.{{rest}}", f"{ours}.2.{{rest}}"),
                *outer_pairs(model),
            )
        )


def outer_pairs(model: VLM) -> list[tuple[str, str]]:
    """Pairs for what stands on either side of the bridge."""
    return [("model.vision_tower.{rest}", "vision.model.{rest}"), *llm_pairs(model, "model.language_model", "lm_head")]


@register_architecture("llava")
class Llava(Architecture):
    """LLaVA-1.5: CLIP or SigLIP, an MLP, any LLM."""

    format = "llava"

    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """See :class:`Architecture`."""
        config = folder.config
        return {
            "vision": vision_part(folder),
            "bridge": [projector(config)],
            "fusion": {"name": "splice"},
            "llm": folder.llm(),
            "template": folder.template(folder.image_token(config.image_token_id, "<image>")),
            "image": folder.image(),
            "text": folder.text(),
            "generation": folder.generation(),
        }


def projector(config: Any) -> dict[str, Any]:
    """The bridge: two linear layers with an activation between."""
    return {
        "name": "mlp",
        "depth": 2,
        "bias": config.multimodal_projector_bias,
        "activation": config.projector_hidden_act,
    }


def vision_part(folder: ModelFolder) -> dict[str, Any]:
    """The vision encoder, whose tokens are those of the layer that config.json names.

    Raises ConfigError: several layers, or an encoder that no part computes.
    """
    config = folder.config
    section, layer = config.vision_config, config.vision_feature_layer
    if section.model_type != "clip_vision_model" or not isinstance(layer, int):
        raise ConfigError(f"{folder.path}: vision {section.model_type} with layer {layer} cannot be composed")
    layer = layer if layer < 0 else layer - section.num_hidden_layers - 1
    keep = config.vision_feature_select_strategy == "full"
    return {"name": "clip", "config": sizes(section), "layer": layer, "keep_cls": keep, "precision": folder.dtype}
