"""``blip2_pretrained_flant5xxl.pth``: Q-Former, query tokens and the norm after the vision encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from vlm.checkpoint.formats.base import below, bridge_index
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import read_tensors
from vlm.checkpoint.strict import NamedTensors
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
            "t5_proj.*",
            "opt_proj.*",
            "vision_proj.*",
            "text_proj.*",
            "itm_head.*",
            "temp",
            "Qformer.cls.*",
            "Qformer.bert.embeddings.position_ids",
            "Qformer.bert.embeddings.word_embeddings.*",
            "Qformer.bert.embeddings.position_embeddings.*",
            "Qformer.bert.encoder.layer.*.intermediate.*",
            "Qformer.bert.encoder.layer.[0-9].output.*",
            "Qformer.bert.encoder.layer.[0-9][0-9].output.*",
        ),
    )


@register_checkpoint_format("blip2_qformer")
class Blip2QFormer:
    """Fills the Q-Former of the chain and ``vision.ln_vision``."""

    def __init__(self, into: str | None = None) -> None:
        self.into = into

    def covered_prefixes(self, model: VLM) -> list[str]:
        """The bridge and the norm after the encoder, if it has one."""
        norm = ["vision.ln_vision"] if below(model, "vision.ln_vision") else []
        return [f"bridge.{self._index(model, 'this file')}", *norm]

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by published name."""
        return read_tensors(path, "model")

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`."""
        theirs, unknown = key_map(self._index(model, file)).rename(tensors)
        placed = {ours: tensors[name] for ours, name in theirs.items()}
        required = [key for prefix in self.covered_prefixes(model) for key in below(model, prefix)]
        return NamedTensors(file, placed, theirs, unknown, required)

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """See :class:`CheckpointFormat`."""
        return "the Q-Former's sizes under model.bridge differ from the file's" if shapes else None

    def _index(self, model: VLM, file: str) -> int:
        index = bridge_index(model, QFormer, self.into)
        if index is None:
            raise WeightsError(f"{file}: format blip2_qformer fills a qformer, but the bridge chain has none")
        return index
