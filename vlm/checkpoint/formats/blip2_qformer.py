"""``blip2_pretrained_flant5xxl.pth``: Q-Former, query tokens and the norm after the vision encoder."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vlm.checkpoint.formats.base import CheckpointFormat, below, bridge_index, parts_of
from vlm.checkpoint.keymap import KeyMap
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.bridges.qformer import QFormer
from vlm.models.vlm import VLM

QFORMER_LAYER = "Qformer.bert.encoder.layer.{i}"


def key_map(index: int) -> KeyMap:
    """The map for a Q-Former that is bridge number ``index``; text layers and the T5 projection are not wanted."""
    ours = f"bridge.{index}.qformer"
    layer = f"{ours}.encoder.layer.{{i}}"
    kept = ("attention.output", "crossattention.output", "intermediate_query", "output_query")
    return KeyMap(
        pairs=(
            ("query_tokens", f"bridge.{index}.query_tokens"),
            ("ln_vision.{rest}", "vision.ln_vision.{rest}"),
            ("Qformer.bert.embeddings.LayerNorm.{rest}", f"{ours}.layernorm.{{rest}}"),
            (f"{QFORMER_LAYER}.attention.self.{{rest}}", f"{layer}.attention.attention.{{rest}}"),
            (f"{QFORMER_LAYER}.crossattention.self.{{rest}}", f"{layer}.crossattention.attention.{{rest}}"),
            *((f"{QFORMER_LAYER}.{part}.{{rest}}", f"{layer}.{part}.{{rest}}") for part in kept),
        ),
        ignored=(
            *(f"{head}.*" for head in ("t5_proj", "opt_proj", "vision_proj", "text_proj", "itm_head", "Qformer.cls")),
            "temp",
            "Qformer.bert.embeddings.position_ids",
            *(f"Qformer.bert.embeddings.{kind}_embeddings.*" for kind in ("word", "position")),
            *(f"{QFORMER_LAYER.format(i=i)}.output.*" for i in ("[0-9]", "[0-9][0-9]")),
            f"{QFORMER_LAYER.format(i='*')}.intermediate.*",
        ),
    )


@register_checkpoint_format("blip2_qformer")
class Blip2QFormer(CheckpointFormat):
    """Fills the Q-Former of the chain and ``vision.ln_vision``, the norm after the encoder, if it has one."""

    shape_hint = "the Q-Former's sizes under model.bridge differ from the file's"

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """The Q-Former."""
        return [self.into] if self.into else parts_of(model_cfg, "bridge", QFormer.Config)[:1]

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        index = bridge_index(model, QFormer, self.into)
        if index is None:
            raise WeightsError(f"{file}: format blip2_qformer fills a qformer, but the bridge chain has none")
        return key_map(index)

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> list[str]:
        """All of both."""
        return below(model, f"bridge.{bridge_index(model, QFormer, self.into)}", "vision.ln_vision")
