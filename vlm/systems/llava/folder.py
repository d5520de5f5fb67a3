"""Folders of LLaVA as transformers saves them (``llava-hf/llava-1.5-7b-hf``) -> compositions."""

from __future__ import annotations

from typing import Any

from vlm.common.errors import ConfigError
from vlm.common.registry import register_architecture
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.folder import ModelFolder
from vlm.models.published import sizes

CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] | upper }}: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The published prompt of version 1, for folders without a chat template."""


@register_architecture("llava")
class Llava(Architecture):
    """LLaVA-1.5: CLIP or SigLIP, an MLP, any LLM."""

    format = "llava"

    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """See :class:`Architecture`."""
        config = folder.config
        token = folder.image_token(config.image_token_id, "<image>")
        return {
            "vision": vision_part(folder),
            "bridge": [projector(config)],
            "fusion": {"name": "splice"},
            "llm": folder.llm(),
            "template": folder.template(token, {"name": "hf_chat", "chat_template": CHAT.replace("<image>", token)}),
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
