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


TABLES = tuple(f"Qformer.bert.embeddings.{kind}_embeddings" for kind in ("word", "position"))
TEXT_LAYERS = (
    *(f"{QFORMER_LAYER.format(i=i)}.output.*" for i in ("[0-9]", "[0-9][0-9]")),
    f"{QFORMER_LAYER.format(i='*')}.intermediate.*",
)
PROJECTIONS = ("t5_proj", "opt_proj", "llm_proj")
"""Names of the linear layer into the LLM."""


def key_map(index: int, reads_text: bool = False) -> KeyMap:
    """The map for a Q-Former that is bridge number ``index``; projections into an LLM are left out.

    Text layers and token tables are left out too, unless it ``reads_text``.
    """
    ours = f"bridge.{index}.qformer"
    layer = f"{ours}.encoder.layer.{{i}}"
    kept = ["attention.output", "crossattention.output", "intermediate_query", "output_query"]
    tables: list[tuple[str, str]] = []
    if reads_text:
        kept += ["intermediate", "output"]
        tables = [(f"{table}.{{rest}}", f"bridge.{index}.text.{table.split('.')[-1]}.{{rest}}") for table in TABLES]
    unwanted = () if reads_text else (*(f"{table}.*" for table in TABLES), *TEXT_LAYERS)
    return KeyMap(
        pairs=(
            ("query_tokens", f"bridge.{index}.query_tokens"),
            ("ln_vision.{rest}", "vision.ln_vision.{rest}"),
            ("Qformer.bert.embeddings.LayerNorm.{rest}", f"{ours}.layernorm.{{rest}}"),
            *tables,
            (f"{QFORMER_LAYER}.attention.self.{{rest}}", f"{layer}.attention.attention.{{rest}}"),
            (f"{QFORMER_LAYER}.crossattention.self.{{rest}}", f"{layer}.crossattention.attention.{{rest}}"),
            *((f"{QFORMER_LAYER}.{part}.{{rest}}", f"{layer}.{part}.{{rest}}") for part in kept),
        ),
        ignored=(
            *(f"{head}.*" for head in (*PROJECTIONS, "vision_proj", "text_proj", "itm_head", "Qformer.cls")),
            "temp",
            "Qformer.bert.embeddings.position_ids",
            *unwanted,
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
        return key_map(index, model.bridge[index].config.reads_text is not None)

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> list[str]:
        """All of both."""
        return below(model, f"bridge.{bridge_index(model, QFormer, self.into)}", "vision.ln_vision")
