"""Folders of Idefics3 and SmolVLM as transformers saves them: the weight format and the composition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm.checkpoint.formats.published import PublishedModel, bridge_to_fill, llm_pairs
from vlm.checkpoint.keymap import KeyMap
from vlm.common.errors import ConfigError
from vlm.common.registry import register_architecture, register_checkpoint_format
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.folder import ModelFolder
from vlm.models.bridges.linear import Linear
from vlm.models.published import sizes
from vlm.models.vlm import VLM

ROUND_IMAGE = "<fake_token_around_image>"
"""The special token before a tile and after an image."""


@register_checkpoint_format("idefics3")
class Idefics3Folder(PublishedModel):
    """Vision encoder, projection and LLM."""

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """Names of transformers' Idefics3ForConditionalGeneration and ours. Raises WeightsError: no projection."""
        index = bridge_to_fill(model, Linear, "linear", "idefics3", file)
        return KeyMap(
            (
                ("model.connector.modality_projection.{rest}", f"bridge.{index}.{{rest}}"),
                ("model.vision_model.{rest}", "vision.model.{rest}"),
                *llm_pairs(model, "model.text_model", "lm_head"),
            )
        )


@register_architecture("idefics3")
@register_architecture("smolvlm")
class Idefics3(Architecture):
    """SigLIP over tiles, pixel shuffle and a projection, any LLM."""

    format = "idefics3"
    trains = ("bridge.*",)

    def pixels(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """See :class:`Architecture`: each tile is a medium."""
        pixels = inputs.get("pixel_values")
        return [] if pixels is None else list(pixels.flatten(0, 1)[:, None])

    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """See :class:`Architecture`."""
        config = folder.config
        return {
            "vision": {"name": "hf_vision", "config": sizes(config.vision_config), "precision": folder.dtype},
            "bridge": [{"name": "pixel_shuffle", "factor": config.scale_factor}, {"name": "linear", "bias": False}],
            "fusion": {"name": "splice"},
            "llm": folder.llm(),
            "template": folder.template(folder.image_token(config.image_token_id, "<image>")),
            "image": image_part(folder),
            "text": folder.text(),
            "generation": folder.generation(),
        }


def image_part(folder: ModelFolder) -> dict[str, Any]:
    """``image:``, tiles with the texts that the processor writes around them.

    Raises ConfigError: tiles of another size than the encoder's, or an image processor with other options.
    """
    stated, side = folder.preprocessor, folder.config.vision_config.image_size
    tile, longest = (stated.get(key, {}).get("longest_edge") for key in ("max_image_size", "size"))
    if tile != side or not isinstance(longest, int):
        raise ConfigError(
            f"{folder.path}: an image processor with tiles of {tile} and a longest edge of {longest}; the vision "
            f"encoder takes {side}"
        )
    return {
        "name": "split",
        "size": tile,
        "longest": longest,
        "divide": bool(stated.get("do_image_splitting", True)),
        "tile_text": f"{ROUND_IMAGE}<row_{{row}}_col_{{column}}>",
        "row_end": "\n",
        "whole_after_tiles": "\n",
        "whole_text": f"{ROUND_IMAGE}<global-img>",
        "end": ROUND_IMAGE,
    } | folder.levels()
