"""``pretrain_lynx.pt`` and ``finetune_lynx.pt``: what Lynx trains, and possibly any other part of the model.

Names as in the repository bytedance/lynx-llm.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below, bridge_index, index_of, parts_of
from vlm.checkpoint.formats.eva import resize_positions
from vlm.checkpoint.keymap import KeyMap
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format, register_export
from vlm.inference.export import ModelExport, trained_tensors
from vlm.models.bridges.frame_positions import FramePositions
from vlm.models.bridges.perceiver import Perceiver
from vlm.models.inserts.adapter import Adapter
from vlm.models.lora import is_lora
from vlm.models.vlm import VLM

log = logging.getLogger(__name__)

FAMILIES = ("vision_encoder", "LLM", "bridge", "absolute_frame_pos_embed")
"""First names in such a file, after any of the prefixes ``model.`` and ``module.``."""
_PREFIX = re.compile(rf"^(?:model\.|module\.)*(?=(?:{'|'.join(FAMILIES)})\b)")
_ATTENTION = re.compile(r"vision_encoder\.blocks\.(\d+)\.attn\.[qkv]_proj\.weight")
FRAMES = "absolute_frame_pos_embed"
VISION, LLM = "vision.vit", "llm.model"
PUBLISHED_ADAPTER = {"adapter_norm_before": "norm", "adapter_down": "down", "adapter_up": "up"}
ROWS = ("llm.model.model.embed_tokens.weight", "llm.model.lm_head.weight")


def key_map(model: VLM) -> KeyMap:
    """Published names <-> ours. Raises WeightsError if the composition has no perceiver or no adapters."""
    perceiver, frames = bridge_index(model, Perceiver), bridge_index(model, FramePositions)
    adapter = index_of(model.inserts, Adapter)
    if perceiver is None or adapter is None:
        raise WeightsError(
            "files of Lynx fill a bridge of perceiver and inserts of adapter; this composition has another",
            fix="use arch lynx, or the format that belongs to this composition",
        )
    theirs, ours = "LLM.model.layers.{i}.output_adapter", f"inserts.{adapter}.layers.{{i}}"
    pairs = [(f"{theirs}.{a}.{{end}}", f"{ours}.{b}.{{end}}") for a, b in PUBLISHED_ADAPTER.items()]
    pairs.append((f"{theirs}.scaling", f"{ours}.scaling"))
    if frames is not None:
        pairs.append((FRAMES, f"bridge.{frames}.positions"))
    pairs.append(("bridge.{rest}", f"bridge.{perceiver}.{{rest}}"))
    block = "blocks.{i}.attn"
    pairs += [(f"vision_encoder.{block}.{x}_proj.bias", f"{VISION}.{block}.{x}_bias") for x in "qv"]
    pairs += [("vision_encoder.{rest}", f"{VISION}.{{rest}}"), ("LLM.{rest}", f"{LLM}.{{rest}}")]
    return KeyMap(tuple(pairs), ("*.rotary_emb.inv_freq", *([] if frames is not None else [FRAMES])))


@register_checkpoint_format("lynx")
class Lynx(CheckpointFormat):
    """Fills bridge and adapters, which must be there, and whatever else the file holds; that overrides other files.

    Takes the tensors as they are or under ``model``, names with or without ``model.`` or ``module.`` in front, the
    tower at another resolution, and embeddings with the row that published code appends for padding.
    """

    shape_hint = "the parts' sizes in the YAML differ from the file's"

    def __init__(self, into: str | None = None) -> None:
        super().__init__(into)
        self.adapted: tuple[set[str], set[str]] = (set(), set())

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """Bridge and adapters."""
        return parts_of(model_cfg, "bridge") + parts_of(model_cfg, "inserts")

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by published name, without prefixes."""
        return {_PREFIX.sub("", key): tensor for key, tensor in super().read(path).items()}

    def prepare(self, model: VLM, tensors: Mapping[str, Tensor], file: str) -> Mapping[str, Tensor]:
        """Check the names, and join the tower's attention matrices."""
        if not any(key.startswith(FAMILIES) for key in tensors):
            raise WeightsError(f"{file}: not a Lynx checkpoint; its keys begin with {', '.join(list(tensors)[:3])}")
        if FRAMES in tensors and key_map(model).is_ignored(FRAMES):
            log.warning("%s: its frame positions are left out, this composition takes images only", file)
        return _join_attention(tensors)

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        return key_map(model)

    def fit(self, model: VLM, placed: dict[str, Tensor], file: str) -> None:
        """Bring frame positions, the tower's positions and the vocabulary into our shapes, where that loses nothing."""
        have = model.state_dict()
        for key, tensor in placed.items():
            if key.endswith(".positions") and tensor.dim() == 4:  # [1, frames, 1, width]
                placed[key] = tensor.flatten(0, 2)
            elif key == f"{VISION}.pos_embed" and key in have and tensor.dim() == 3:
                placed[key] = resize_positions(tensor, have[key].shape[1])
            elif key in ROWS and key in have and len(tensor) == len(have[key]) + 1:
                log.info("%s: %s without the last row, appended for padding", file, key)
                placed[key] = tensor[:-1]
        self.adapted = (_adapted(placed), _adapted(have))

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> Collection[str]:
        """What trains, and all of the tower or the LLM when the file has any of it."""
        more = [part for part in (VISION, LLM) if any(key.startswith(f"{part}.") for key in placed)]
        return set(below(model, "bridge", "inserts", *more)) - set(filled)

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """See :class:`CheckpointFormat`."""
        result, expected = (", ".join(sorted(side, key=int)) or "none" for side in self.adapted)
        if result != expected:
            return f"the file has adapters at layers {result}, the composition at {expected}: set every and first there"
        if any(key.endswith(".positions") for key in shapes):
            return "set num_frames at model.bridge frame_positions to the file's"
        if any(key.startswith("bridge.") for key in shapes):
            return "set depth, heads, dim_head and num_latents of the perceiver, and the LLM, to the file's"
        return super().hint(shapes)


def _join_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value matrices of the tower as one, where a block has all three."""
    joined = dict(tensors)
    for number in sorted({m[1] for key in tensors if (m := _ATTENTION.fullmatch(key))}):
        stem = f"vision_encoder.blocks.{number}.attn."
        names = [f"{stem}{x}_proj.weight" for x in "qkv"]
        if all(name in tensors for name in names):
            joined[f"{stem}qkv.weight"] = torch.cat([joined.pop(name) for name in names])
    return joined


def _adapted(keys: Collection[str]) -> set[str]:
    """Numbers of the decoder layers that have adapters."""
    return {key.split(".")[3] for key in keys if key.startswith("inserts.")}


@register_export("lynx")
class LynxExport(ModelExport):
    """One .pt file of Lynx: perceiver, frame positions and adapters."""

    def save(self, model: VLM, path: Path) -> list[str]:
        """Write bridge, adapters and whatever else trains; see :class:`ModelExport`."""
        names = key_map(model)
        theirs = {name: names.theirs(name) for name in model.state_dict() if not is_lora(name)}
        tensors = trained_tensors(model, theirs.get, "published Lynx checkpoints", whole=("bridge.", "inserts."))
        state: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            value = tensor.float()
            if name.endswith("attn.qkv.weight"):
                stem = name.removesuffix("qkv.weight")
                state |= {f"{stem}{x}_proj.weight": part.clone() for x, part in zip("qkv", value.chunk(3), strict=True)}
            else:
                state[name] = value[None, :, None] if name == FRAMES else value
        torch.save(state, path)
        return list(state)
