"""Every part of a composition under our own names: what an export writes next to its composition."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat
from vlm.checkpoint.safe import read_folder
from vlm.checkpoint.strict import NamedTensors
from vlm.common.registry import register_checkpoint_format
from vlm.models.vlm import VLM


@register_checkpoint_format("whole")
class Whole(CheckpointFormat):
    """A folder with ``model.safetensors``, or its shards, that fills the whole model."""

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """All parts."""
        lists = [f"{kind}.{i}" for kind in ("bridge", "inserts") for i in range(len(getattr(model_cfg, kind)))]
        return ["vision", "llm", *lists]

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of all shards, mapped from disk."""
        return read_folder(path)

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`. A head that is tied to the embeddings may be absent."""
        tied = {f"llm.model.{name}" for name in model.llm.model.all_tied_weights_keys or ()}
        return NamedTensors(file, dict(tensors), required=set(model.state_dict()) - tied)
