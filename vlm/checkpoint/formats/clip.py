"""CLIP as Hugging Face saves it: the whole model or its vision tower, a folder or a single file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below
from vlm.checkpoint.formats.eva import resize_positions
from vlm.checkpoint.safe import read_folder
from vlm.checkpoint.strict import NamedTensors
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.vision.clip import FOLDERS, Clip
from vlm.models.vlm import VLM

TOWER = "vision_model."
TEXT_TOWER_KEYS = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
BUFFERS = (".position_ids",)
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.")


def tower_names(names: Collection[str], vision: Clip) -> tuple[dict[str, str], list[str]]:
    """Names within ``vision.model`` -> names in the file, and the names that nobody declared.

    Left out: the text half, buffers, and what this tower does not have (later blocks, an unused final norm).
    """
    prefix = TOWER if any(name.startswith(TOWER) for name in names) else ""
    result: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        inner = name.removeprefix(prefix)
        block = _BLOCK.match(inner)
        if name.endswith(BUFFERS) or (block and int(block[1]) >= len(vision.blocks())):
            continue
        if inner.startswith("post_layernorm.") and not vision.config.post_layernorm:
            continue
        if name.startswith(prefix) and not name.startswith(TEXT_TOWER_KEYS):
            result[inner] = name
        elif not name.startswith(TEXT_TOWER_KEYS):
            unknown.append(name)
    return result, unknown


def fit_positions(placed: dict[str, Tensor], prefix: str, vision: Clip) -> None:
    """Fit the position table among ``placed`` (our names) to the image size of ``vision``."""
    table = f"{prefix}.embeddings.position_embedding.weight"
    if table in placed and placed[table].dim() == 2:
        count = len(vision.model.embeddings.position_embedding.weight)
        placed[table] = resize_positions(placed[table][None], count)[0]


@register_checkpoint_format("clip")
class ClipFolder(CheckpointFormat):
    """Fills ``vision.model``; fits the position table to the image size."""

    part, inner = "vision", "model"
    shape_hint = "config.json and the weights are of different encoders: use files of one model"

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of all files by published name."""
        return read_folder(path, FOLDERS)

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`."""
        if not isinstance(model.vision, Clip):
            raise WeightsError(f"{file}: format clip fills a CLIP tower, but model.vision is another encoder")
        names, unknown = tower_names(tensors, model.vision)
        theirs = {f"{self.prefix}.{inner}": name for inner, name in names.items()}
        placed = {ours: tensors[name] for ours, name in theirs.items()}
        fit_positions(placed, self.prefix, model.vision)
        return NamedTensors(file, placed, theirs, unknown, below(model, self.prefix))
