"""Weights of Gemma 3 as transformers saves them (``google/gemma-3-4b-it``)."""

from __future__ import annotations

from torch import Tensor

from vlm.checkpoint.formats.published import PublishedModel, bridge_to_fill, llm_pairs
from vlm.checkpoint.keymap import KeyMap
from vlm.common.registry import register_checkpoint_format
from vlm.models.bridges.mlp import MLP
from vlm.models.vlm import VLM

PROJECTOR = "model.multi_modal_projector"
MATRIX, NORM = f"{PROJECTOR}.mm_input_projection_weight", f"{PROJECTOR}.mm_soft_emb_norm.weight"


@register_checkpoint_format("gemma3")
class Gemma3Folder(PublishedModel):
    """Vision encoder, norm and projection, and LLM."""

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """Names of transformers' Gemma3ForConditionalGeneration and ours. Raises WeightsError: no projection."""
        index = bridge_to_fill(model, MLP, "mlp", "gemma3", file)
        return KeyMap(
            (
                (MATRIX, f"bridge.{index}.layers.0.weight"),
                (NORM, f"bridge.{index}.norm.weight"),
                ("model.vision_tower.{rest}", "vision.model.{rest}"),
                *llm_pairs(model, "model.language_model", "lm_head"),
            )
        )

    def divided(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`PublishedModel`: the matrix is stored as ``[in, out]``, the norm as its difference from one."""
        return tensors | {name: convert(tensors[name]) for name, convert in OURS.items() if name in tensors}

    def joined(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`PublishedModel`."""
        return tensors | {name: convert(tensors[name]) for name, convert in THEIRS.items() if name in tensors}


def _transposed(matrix: Tensor) -> Tensor:
    return matrix.t().contiguous()


OURS = {MATRIX: _transposed, NORM: lambda weight: weight + 1}
THEIRS = {MATRIX: _transposed, NORM: lambda weight: weight - 1}
