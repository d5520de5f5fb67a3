"""Weights of LLaVA as transformers saves them (``llava-hf/llava-1.5-7b-hf``)."""

from __future__ import annotations

from vlm.checkpoint.formats.base import bridge_index
from vlm.checkpoint.formats.published import PublishedModel, bridge_to_fill, llm_pairs
from vlm.checkpoint.keymap import KeyMap
from vlm.common.registry import register_checkpoint_format
from vlm.models.bridges.mlp import MLP
from vlm.models.bridges.newline import TileRowsBridge
from vlm.models.vlm import VLM


@register_checkpoint_format("llava")
class LlavaFolder(PublishedModel):
    """Vision encoder, MLP, the token that ends a row of tiles, and LLM."""

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """Names of transformers' models of LLaVA and LLaVA-NeXT, and ours. Raises WeightsError: no MLP."""
        index = bridge_to_fill(model, MLP, "mlp", "llava", file)
        after = bridge_index(model, TileRowsBridge)
        newline = () if after is None else (("model.image_newline", f"bridge.{after}.newline"),)
        theirs, ours = "model.multi_modal_projector", f"bridge.{index}.layers"
        return KeyMap(
            (
                (f"{theirs}.linear_1.{{rest}}", f"{ours}.0.{{rest}}"),
                (f"{theirs}.linear_2.{{rest}}", f"{ours}.2.{{rest}}"),
                *newline,
                *outer_pairs(model),
            )
        )


def outer_pairs(model: VLM) -> list[tuple[str, str]]:
    """Pairs for what is on either side of the bridge."""
    return [("model.vision_tower.{rest}", "vision.model.{rest}"), *llm_pairs(model, "model.language_model", "lm_head")]
