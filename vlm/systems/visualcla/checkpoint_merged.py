"""A merged VisualCLA folder: ``text_encoder/``, ``vision_encoder/``, and the bridge in ``pytorch_model*.bin``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below, parts_of
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import read_tensors, shards
from vlm.common.errors import WeightsError
from vlm.common.paths import inner_folder
from vlm.common.registry import register_checkpoint_format
from vlm.models.llm.hf import FOLDERS as TEXT_FOLDERS
from vlm.models.vision.clip import FOLDERS as VISION_FOLDERS
from vlm.models.vlm import VLM
from vlm.systems.visualcla.checkpoint_keys import EMBEDDINGS, TEXT, complete_bridge, fill, key_map


@register_checkpoint_format("visualcla_merged")
class VisualCLAMerged(CheckpointFormat):
    """Fills the whole composition. The vocabulary is that of the tensors, as published configurations are outdated."""

    shape_hint = "the folder's configurations and weights are of different models"

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """Everything."""
        return ["vision", "llm", *parts_of(model_cfg, "bridge")]

    def infer_config(self, model_cfg: Any, path: Path) -> Any:
        """See :class:`InfersConfig`."""
        done = complete_bridge(model_cfg, path)
        for file in shards(_part(path, TEXT_FOLDERS)):
            table = read_tensors(file).get(EMBEDDINGS.removeprefix(TEXT))
            if table is not None:
                done.llm = fill(done.llm, {"vocab_size": len(table)}, "model.llm", path)
        return done

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of all three parts, by their names in the whole published model."""
        tensors: dict[str, Tensor] = {}
        for names, prefix in ((VISION_FOLDERS, "vision_model."), (TEXT_FOLDERS, TEXT)):
            for file in shards(_part(path, names)):
                tensors |= {prefix + name: tensor for name, tensor in read_tensors(file).items()}
        index = path / "pytorch_model.bin.index.json"
        files = shards(path) if index.is_file() else sorted(path.glob("pytorch_model*.bin")) or shards(path)
        return tensors | {name: tensor for file in files for name, tensor in read_tensors(file).items()}

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        return key_map(model)

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> list[str]:
        """Everything but LoRA."""
        return below(model, "vision.model", "llm.model", "bridge")


def _part(path: Path, names: Collection[str]) -> Path:
    folder = inner_folder(path, list(names))
    if folder == path:
        raise WeightsError(
            f"{path}: no folder {' or '.join(names)}",
            fix="give a merged folder: text_encoder/, vision_encoder/, pytorch_model.bin, config.json",
        )
    return folder
