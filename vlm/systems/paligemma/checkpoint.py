"""Weights of PaliGemma as transformers saves them (``google/paligemma-3b-mix-224``)."""

from __future__ import annotations

from vlm.checkpoint.formats.published import PublishedModel, bridge_to_fill, llm_pairs
from vlm.checkpoint.keymap import KeyMap
from vlm.common.registry import register_checkpoint_format
from vlm.models.bridges.linear import Linear
from vlm.models.vlm import VLM


@register_checkpoint_format("paligemma")
class PaliGemmaFolder(PublishedModel):
    """Vision encoder, projection and LLM."""

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """Names of transformers' PaliGemmaForConditionalGeneration and ours. Raises WeightsError: no projection."""
        index = bridge_to_fill(model, Linear, "linear", "paligemma", file)
        return KeyMap(
            (
                ("model.multi_modal_projector.linear.{rest}", f"bridge.{index}.proj.{{rest}}"),
                ("model.vision_tower.{rest}", "vision.model.{rest}"),
                *llm_pairs(model, "model.language_model", "lm_head"),
            )
        )
