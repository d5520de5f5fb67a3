"""Folders of LLaVA as transformers saves them (``llava-hf/llava-1.5-7b-hf``) -> compositions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm.common.errors import ConfigError
from vlm.common.registry import register_architecture
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.folder import ModelFolder
from vlm.models.published import sizes
from vlm.models.vision.tower import build_tower

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
    """LLaVA-1.5: CLIP, SigLIP or another tower, an MLP, any LLM."""

    format = "llava"

    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """See :class:`Architecture`."""
        token = folder.image_token(folder.config.image_token_id, "<image>")
        return {
            "vision": vision_part(folder),
            "bridge": [projector(folder.config), *self.after(folder)],
            "fusion": {"name": "splice"},
            "llm": folder.llm(),
            "template": folder.template(token, {"name": "hf_chat", "chat_template": CHAT.replace("<image>", token)}),
            "image": self.image(folder),
            "text": folder.text(),
            "generation": folder.generation(),
        }

    def after(self, folder: ModelFolder) -> list[dict[str, Any]]:
        """Bridges after the MLP."""
        return []

    def image(self, folder: ModelFolder) -> dict[str, Any]:
        """The image recipe."""
        return folder.image()


@register_architecture("llava_next")
class LlavaNext(Llava):
    """LLaVA-NeXT: an image is shown small and in tiles, whose rows end with a learned token."""

    def after(self, folder: ModelFolder) -> list[dict[str, Any]]:
        """See :class:`Llava`."""
        size, grids = tiles(folder)
        return [{"name": "tile_rows", "size": size, "grids": grids}]

    def image(self, folder: ModelFolder) -> dict[str, Any]:
        """See :class:`Llava`."""
        size, grids = tiles(folder)
        return {"name": "tiles", "size": size, "grids": grids, **folder.levels()}

    def pixels(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """See :class:`Architecture`; transformers adds tiles of zeros where images have different numbers."""
        return [tiles[: int(tiles.flatten(1).any(1).sum())] for tiles in inputs.get("pixel_values", ())]


def tiles(folder: ModelFolder) -> tuple[int, list[list[int]]]:
    """Side of a tile in pixels, and the grids of tiles.

    Raises ConfigError: areas that do not divide into tiles, or other ones in the image processor.
    """
    side, areas = folder.config.vision_config.image_size, folder.config.image_grid_pinpoints
    if folder.image()["size"] != side or folder.preprocessor.get("image_grid_pinpoints", areas) != areas:
        raise ConfigError(f"{folder.path}: config.json and the image processor state other tiles")
    if not areas or any(height % side or width % side for height, width in areas):
        raise ConfigError(f"{folder.path}: image_grid_pinpoints {areas} do not divide into tiles of {side} pixels")
    return side, [[height // side, width // side] for height, width in areas]


def projector(config: Any) -> dict[str, Any]:
    """The bridge: two linear layers with an activation between."""
    return {
        "name": "mlp",
        "depth": 2,
        "bias": config.multimodal_projector_bias,
        "activation": config.projector_hidden_act,
    }


def vision_part(folder: ModelFolder) -> dict[str, Any]:
    """The vision encoder, whose tokens are those of the layers that config.json names.

    Raises ConfigError: the embeddings before the first layer, or an encoder whose images differ in size.
    """
    config = folder.config
    section, stated = config.vision_config, config.vision_feature_layer
    depth, kind = section.num_hidden_layers, section.model_type
    layers = [n if n < 0 else n - depth - 1 for n in ([stated] if isinstance(stated, int) else stated)]
    if min(layers) < -depth or not isinstance(section.image_size, int) or kind == "pixtral":
        raise ConfigError(f"{folder.path}: vision {kind} with layer {stated} cannot be composed")
    full = config.vision_feature_select_strategy == "full"
    common = {"config": sizes(section), "keep_cls": full, "precision": folder.dtype}
    if kind == "clip_vision_model" and len(layers) == 1:
        return {"name": "clip", **common, "layer": layers[0]}
    with torch.device("meta"):
        tower = build_tower(copy.deepcopy(section), 1, f"{folder.path}: vision")[1]
    if not full and not tower.cls:
        raise ConfigError(f"{folder.path}: the first token of a {kind}, which has no class token, would be dropped")
    registers = {"keep_registers": True} if tower.others else {}
    layer: int | list[int] = layers if len(layers) > 1 else layers[0]
    return {"name": "hf_vision", **common, **registers, "layer": layer, "post_norm": False}
