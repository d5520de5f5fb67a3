"""A Hugging Face folder with a vision tower: its own, a dual encoder's, or that of a whole vision-language model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import read_folder
from vlm.checkpoint.strict import NamedTensors
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.llm.conversion import converted
from vlm.models.vision.clip import FOLDERS
from vlm.models.vision.hf import HFVision
from vlm.models.vlm import VLM

TOWERS = ("vision_tower.vision_model.", "vision_tower.", "vision_model.")
"""Where a larger model keeps its tower, also below ``model.``."""
TEXT = ("text_model.", "text_projection", "visual_projection", "logit_scale", "logit_bias")
"""The rest of a dual encoder."""
REST = ("language_model.", "text_model.", "lm_head.", "multi_modal_projector.", "connector.", "image_newline")
"""The rest of a vision-language model, also below ``model.``."""
UNUSED = KeyMap((), ("*.position_ids", "*mask_token", "*.inv_freq"))
"""Buffers, and a parameter of pretraining."""
HEADS = ("head.", "pooler.", "classifier.")
"""Pooling and classification after the last block."""


@register_checkpoint_format("hf_vision")
class HFVisionFolder(CheckpointFormat):
    """Fills ``vision.model`` of an ``hf_vision``, except LoRA; blocks and heads that it does not build are left out."""

    part, inner = "vision", "model"
    shape_hint = "config.json and the weights are of different towers: use files of one model"

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of all shards (mapped from disk), or of a single file."""
        return read_folder(path, FOLDERS)

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`."""
        vision = self.target(model)
        if not isinstance(vision, HFVision):
            fix = "vision: {name: hf_vision, path: FOLDER}, or a format for that encoder"
            raise WeightsError(f"{file}: format hf_vision fills an hf_vision, but the part is another encoder", fix=fix)
        required = below(model, self.prefix)
        have = {key.removeprefix(f"{self.prefix}.").replace(".base_layer.", ".") for key in required}
        own = tower_names(tensors)
        held = {name: tensors[key] for name, key in own.items()}
        named, sources = converted(vision.model, held, have | later_blocks(vision, have), file)
        ours = {name: f"{self.prefix}.{name}" for name in named if name in have or not not_built(vision, name)}
        placed = {key: named[name] for name, key in ours.items()}
        theirs = {key: own[sources[name]] for name, key in ours.items()}
        return NamedTensors(file, placed, theirs, [], required)


def tower_names(names: Collection[str]) -> dict[str, str]:
    """Names within the tower -> names in the file, which may hold a larger model."""
    wholes = [f"{model}{tower}" for model in ("model.", "") for tower in TOWERS]
    start = next((start for start in wholes if any(name.startswith(start) for name in names)), "")
    rest = (*TEXT, *(f"{model}{name}" for model in ("model.", "") for name in REST)) if start else ()
    kept = [name for name in names if not name.startswith(rest) and not UNUSED.is_ignored(name)]
    return {name.removeprefix(start): name for name in kept}


def later_blocks(vision: HFVision, names: Collection[str]) -> set[str]:
    """What the names of the first block are in those that are not built."""
    first = f"{vision.tower.blocks}.0."
    inner = [name.removeprefix(first) for name in names if name.startswith(first)]
    numbers = range(len(vision.blocks()), vision.depth)
    return {f"{vision.tower.blocks}.{number}.{name}" for number in numbers for name in inner}


def not_built(vision: HFVision, name: str) -> bool:
    """Whether a tensor is of a later block, of an unused norm or of a head."""
    tower = vision.tower
    block = re.match(rf"{re.escape(tower.blocks)}\.(\d+)\.", name)
    later = block is not None and len(vision.blocks()) <= int(block[1]) < vision.depth
    return later or name.startswith((*HEADS, *([f"{tower.norm}."] if vision.norm is None else [])))
