"""Folders of Qwen2-VL as transformers saves them (``Qwen/Qwen2-VL-2B-Instruct``): weight format and composition."""

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
from vlm.models.bridges.patch_merger import PatchMerger
from vlm.models.published import sizes
from vlm.models.vlm import VLM


@register_checkpoint_format("qwen2_vl")
class Qwen2VLFolder(PublishedModel):
    """Vision tower, the module that merges its tokens, and the LLM."""

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """Names of transformers' Qwen2VLForConditionalGeneration and ours. Raises WeightsError: no patch_merger."""
        index = bridge_to_fill(model, PatchMerger, "patch_merger", "qwen2_vl", file)
        return KeyMap(
            (
                ("model.visual.merger.{rest}", f"bridge.{index}.{{rest}}"),
                ("model.visual.{rest}", "vision.model.{rest}"),
                *llm_pairs(model, "model.language_model", "lm_head"),
            )
        )


@register_architecture("qwen2_vl")
class Qwen2VL(Architecture):
    """Images at their own size, merged patches, rotary positions of three axes."""

    format = "qwen2_vl"

    def pixels(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """See :class:`Architecture`."""
        patches, grids = inputs.get("pixel_values"), inputs.get("image_grid_thw")
        if patches is None or grids is None:
            return []
        counts = [int(grid.prod()) for grid in grids]
        return [_image(own, grid.tolist()) for own, grid in zip(patches.split(counts), grids, strict=True)]

    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """See :class:`Architecture`."""
        config = folder.config
        token = folder.image_token(config.image_token_id, "<|image_pad|>")
        return {
            "vision": {"name": "hf_flat_vision", "config": sizes(config.vision_config), "precision": folder.dtype},
            "bridge": [{"name": "patch_merger", "size": config.vision_config.spatial_merge_size}],
            "fusion": {"name": "splice", "positions": "grid"},
            "llm": folder.llm(),
            "template": folder.template(token),
            "image": image_part(folder),
            "text": folder.text(),
            "generation": folder.generation(),
        }


def image_part(folder: ModelFolder) -> dict[str, Any]:
    """``image:`` of any height and width. Raises ConfigError: another patch size than the tower's, or no limits."""
    stated, tower = folder.preprocessor, folder.config.vision_config
    size = stated.get("size") or {}
    least, most = (stated.get(f"{name}_pixels") or size.get(f"{edge}_edge") for name, edge in LIMITS)
    patch, merge = stated.get("patch_size", tower.patch_size), stated.get("merge_size", tower.spatial_merge_size)
    if (patch, merge) != (tower.patch_size, tower.spatial_merge_size) or not least or not most:
        raise ConfigError(
            f"{folder.path}: an image processor with patches of {patch}, merged {merge} x {merge}, and {least} to "
            f"{most} pixels; the vision tower has patches of {tower.patch_size}, merged {tower.spatial_merge_size}"
        )
    return {"name": "native", "multiple": patch * merge, "least": least, "most": most} | folder.levels()


LIMITS = (("min", "shortest"), ("max", "longest"))
"""Names of the limits in pixels, of earlier and of later versions."""


def _image(patches: Tensor, grid: list[int]) -> Tensor:
    """``[1, 3, h, w]`` from the patches of one image, each of which holds its frame twice."""
    _, rows, columns = grid
    side, merge = round((patches.shape[1] / 6) ** 0.5), 2
    cut = patches.view(rows // merge, columns // merge, merge, merge, 3, 2, side, side)[:, :, :, :, :, 0]
    return cut.permute(4, 0, 2, 5, 1, 3, 6).reshape(1, 3, rows * side, columns * side)
