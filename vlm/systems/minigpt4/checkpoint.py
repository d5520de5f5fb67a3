"""Trained parts: published MiniGPT checkpoints (all four families) and this library's own run folders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.formats import blip2_qformer, eva
from vlm.checkpoint.formats.base import bridge_index
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.run_folder import WEIGHTS, find_checkpoint
from vlm.checkpoint.safe import read_tensors
from vlm.checkpoint.strict import NamedTensors
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.lora import ADAPTER, is_lora
from vlm.models.vlm import VLM

LLM_WIDTHS = {4096: "a 7B", 5120: "a 13B"}
PROJECTION = "llama_proj."


def key_map(model: VLM) -> KeyMap:
    """Published names of everything that can train in this composition.

    Vicuna, LLaMA-2 and April-2023 files hold ``llama_proj.*``; v2 files also LoRA, under the names of peft 0.2
    (``lora_A.weight``) or later (``lora_A.default.weight``). Unfrozen Q-Formers and encoders keep their own names.
    Buffers, and the layers that the other maps do not want, are ignored.
    """
    pairs: list[tuple[str, str]] = []
    linear = bridge_index(model, Linear, None)
    if linear is not None:
        pairs.append((f"{PROJECTION}{{rest}}", f"bridge.{linear}.proj.{{rest}}"))
    wrapped = "llama_model.base_model.model.{rest}"
    for matrix in ("lora_A", "lora_B"):
        ours = f"llm.model.{{rest}}.{matrix}.{ADAPTER}.weight"
        pairs += [(f"{wrapped}.{matrix}.{ADAPTER}.weight", ours), (f"{wrapped}.{matrix}.weight", ours)]
    ignored = ["*.rotary_emb.inv_freq", "*.position_ids"]
    qformer = bridge_index(model, QFormer, None)
    if qformer is not None:
        inner = blip2_qformer.key_map(qformer)
        pairs += inner.pairs
        ignored += inner.ignored
    if hasattr(model.vision, "vit"):
        pairs += [(f"visual_encoder.{a}", b) for a, b in eva.key_map(len(model.vision.vit.blocks)).pairs]
        pairs.append(("ln_vision.{rest}", "vision.ln_vision.{rest}"))
    return KeyMap(tuple(pairs), tuple(ignored))


@register_checkpoint_format("trained")
class Trained:
    """Fills what trains and no other file has filled. The path is a file, a run folder, or a checkpoint in one."""

    def __init__(self, into: str | None = None) -> None:
        self.into = into

    def covered_prefixes(self, model: VLM) -> list[str]:
        """Nothing is taken for granted."""
        return []

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by their names in the file."""
        if path.is_dir():
            path = find_checkpoint(path) / WEIGHTS
        return read_tensors(path, "model")

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`."""
        training = {name for name, p in model.named_parameters() if p.requires_grad}
        required = training - set(filled)
        if any(key.startswith(("bridge.", "inserts.", "vision.", "llm.")) for key in tensors):
            return NamedTensors(file, dict(tensors), required=required)
        if not any(key.startswith(PROJECTION) for key in tensors):
            raise WeightsError(
                f"{file}: neither a MiniGPT checkpoint (no {PROJECTION}*) nor one of this library's; "
                f"its keys begin with {', '.join(list(tensors)[:3])}"
            )
        theirs, unknown = key_map(model).rename(tensors)
        known = set(model.state_dict())
        extra_lora = [theirs.pop(key) for key in list(theirs) if is_lora(key) and key not in known]
        return NamedTensors(
            file, {ours: tensors[name] for ours, name in theirs.items()}, theirs, unknown + extra_lora, required
        )

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """Tell projections for another LLM, or for another bridge, apart."""
        for key, text in shapes.items():
            if key.startswith("bridge.") and key.endswith("proj.weight"):
                (rows, columns), (width, inner) = (_sizes(part) for part in text.split(", model "))
                if rows != width:
                    family = LLM_WIDTHS.get(rows, "another")
                    return f"this is {family} projection (width {rows}); your LLM has width {width}"
                return f"this projection takes {columns} features per token; your bridge gives {inner} (another family)"
        if shapes:
            return None
        return (
            "use a checkpoint of the same composition (LoRA and what trains must agree), "
            "or declare what starts afresh: weights: [{format: random, into: llm}, ...]"
        )


def _sizes(text: str) -> list[int]:
    return [int(n) for n in text.split("[")[1].rstrip("])").split(",")]


def export_published(model: VLM, path: Path) -> list[str]:
    """Write what trains as a published MiniGPT checkpoint, ``{"model": {...}}`` with peft-0.2 names.

    Returns:
        The names written.

    Raises:
        WeightsError: something trains that the published layout has no name for.
    """
    names = key_map(model)
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            theirs = names.theirs(name)
            if theirs is None:
                raise WeightsError(f"{name} trains, but published MiniGPT checkpoints have no such part")
            theirs = theirs.replace(f".{ADAPTER}.weight", ".weight") if is_lora(name) else theirs
            state[theirs] = parameter.detach().cpu().clone()
    torch.save({"model": state}, path)
    return list(state)
