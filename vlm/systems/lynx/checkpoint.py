"""``pretrain_lynx.pt`` and ``finetune_lynx.pt``: what Lynx trains, and possibly any other part of the model."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.formats.base import below, bridge_index
from vlm.checkpoint.formats.eva import resize_positions
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import read_tensors
from vlm.checkpoint.strict import NamedTensors
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.bridges.frame_positions import FramePositions
from vlm.models.bridges.perceiver import Perceiver
from vlm.models.inserts.adapter import Adapter
from vlm.models.lora import is_lora
from vlm.models.vlm import VLM

log = logging.getLogger(__name__)

FAMILIES = ("vision_encoder", "LLM", "bridge", "absolute_frame_pos_embed")
"""First names in such a file, behind any of the prefixes ``model.`` and ``module.``."""
_PREFIX = re.compile(rf"^(?:model\.|module\.)*(?=(?:{'|'.join(FAMILIES)})\b)")
_ATTENTION = re.compile(r"vision_encoder\.blocks\.(\d+)\.attn\.[qkv]_proj\.weight")
FRAMES = "absolute_frame_pos_embed"
VISION, LLM = "vision.vit", "llm.model"
PUBLISHED_ADAPTER = {"adapter_norm_before": "norm", "adapter_down": "down", "adapter_up": "up"}
ROWS = ("llm.model.model.embed_tokens.weight", "llm.model.lm_head.weight")


def key_map(model: VLM) -> KeyMap:
    """Published names <-> ours, for a composition with perceiver and adapters.

    Raises:
        WeightsError: the composition lacks one of them.
    """
    perceiver, frames = bridge_index(model, Perceiver, None), bridge_index(model, FramePositions, None)
    adapter = next((i for i, part in enumerate(model.inserts) if isinstance(part, Adapter)), None)
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
class Lynx:
    """Fills bridge and adapters, which must be there, and whatever else the file holds; that overrides other files.

    Takes the tensors bare or under ``model``, names with or without ``model.`` or ``module.`` in front, the tower at
    another resolution, and embeddings with the row that published code appends for padding.
    """

    def __init__(self, into: str | None = None) -> None:
        self.into = into
        self.adapted: tuple[set[str], set[str]] = (set(), set())

    def covered_prefixes(self, model: VLM) -> list[str]:
        """Bridge and adapters."""
        key_map(model)
        return [
            *(f"bridge.{i}" for i in range(len(model.bridge))),
            *(f"inserts.{i}" for i in range(len(model.inserts))),
        ]

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by published name, without prefixes."""
        return {_PREFIX.sub("", key): tensor for key, tensor in read_tensors(path, "model").items()}

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`."""
        if not any(key.startswith(FAMILIES) for key in tensors):
            raise WeightsError(f"{file}: not a Lynx checkpoint; its keys begin with {', '.join(list(tensors)[:3])}")
        names = key_map(model)
        if FRAMES in tensors and names.is_ignored(FRAMES):
            log.warning("%s: its frame positions are left out, this composition takes images only", file)
        tensors = _join_attention(tensors)
        theirs, unknown = names.rename(tensors)
        have = model.state_dict()
        placed = {_inside_lora(ours, have): tensors[name] for ours, name in theirs.items()}
        _fit(placed, have, file)
        self.adapted = (_adapted(placed), _adapted(have))
        return NamedTensors(file, placed, theirs, unknown, self._required(model, placed) - set(filled))

    def _required(self, model: VLM, placed: Collection[str]) -> set[str]:
        """What trains, and all of the tower or the LLM when the file has any of it."""
        groups = ["bridge", "inserts", *(g for g in (VISION, LLM) if any(k.startswith(f"{g}.") for k in placed))]
        return {key for group in groups for key in below(model, group) if not is_lora(key)}

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """See :class:`CheckpointFormat`."""
        result, expected = (", ".join(sorted(side, key=int)) or "none" for side in self.adapted)
        if result != expected:
            return f"the file has adapters at layers {result}, the composition at {expected}: set every and first there"
        if any(key.endswith(".positions") for key in shapes):
            return "set num_frames at model.bridge frame_positions to the file's"
        if any(key.startswith("bridge.") for key in shapes):
            return "set depth, heads, dim_head and num_latents of the perceiver, and the LLM, to the file's"
        return "the parts' sizes in the YAML differ from the file's" if shapes else None


def _join_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value matrices of the tower as one, where a block has all three."""
    joined = dict(tensors)
    for number in sorted({m[1] for key in tensors if (m := _ATTENTION.fullmatch(key))}):
        stem = f"vision_encoder.blocks.{number}.attn."
        names = [f"{stem}{x}_proj.weight" for x in "qkv"]
        if all(name in tensors for name in names):
            joined[f"{stem}qkv.weight"] = torch.cat([joined.pop(name) for name in names])
    return joined


def _inside_lora(key: str, have: Collection[str]) -> str:
    stem, _, last = key.rpartition(".")
    wrapped = f"{stem}.base_layer.{last}"
    return wrapped if key not in have and wrapped in have else key


def _fit(placed: dict[str, Tensor], have: Mapping[str, Tensor], file: str) -> None:
    """Bring frame positions, the tower's positions and the vocabulary into our shapes, where that loses nothing."""
    for key, tensor in placed.items():
        if key.endswith(".positions") and tensor.dim() == 4:
            placed[key] = tensor.flatten(0, 2)
        elif key == f"{VISION}.pos_embed" and key in have and tensor.dim() == 3:
            placed[key] = resize_positions(tensor, have[key].shape[1])
        elif key in ROWS and key in have and len(tensor) == len(have[key]) + 1:
            log.info("%s: %s without the last row, appended for padding", file, key)
            placed[key] = tensor[:-1]


def _adapted(keys: Collection[str]) -> set[str]:
    """Numbers of the decoder layers that have adapters."""
    return {key.split(".")[3] for key in keys if key.startswith("inserts.")}


def export_lynx(model: VLM, path: Path) -> list[str]:
    """Write perceiver, frame positions, adapters and whatever else trains as a published checkpoint.

    Returns:
        The names written.

    Raises:
        WeightsError: the composition is another, or something trains that the published layout has no name for.
    """
    names = key_map(model)
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not name.startswith(("bridge.", "inserts.")):
            continue
        theirs = None if is_lora(name) else names.theirs(name)
        if theirs is None:
            raise WeightsError(f"{name} trains, but published Lynx checkpoints have no such part")
        value = parameter.detach().float().cpu().clone()
        if theirs.endswith("attn.qkv.weight"):
            stem = theirs.removesuffix("qkv.weight")
            state |= {f"{stem}{x}_proj.weight": part.clone() for x, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            state[theirs] = value[None, :, None] if theirs == FRAMES else value
    torch.save(state, path)
    return list(state)
