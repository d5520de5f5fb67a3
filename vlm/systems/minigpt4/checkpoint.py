"""Published checkpoints of MiniGPT-4 and MiniGPT-v2: what their trainer saves, ``{"model": {name: tensor}}``.

Names as in the repository Vision-CAIR/MiniGPT-4.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.formats import blip2_qformer, eva
from vlm.checkpoint.formats.base import bridge_index
from vlm.checkpoint.formats.run_folder import TrainedParts, not_trained
from vlm.checkpoint.keymap import KeyMap, lora_pairs
from vlm.checkpoint.strict import NamedTensors
from vlm.common.registry import register_checkpoint_format, register_export
from vlm.inference.export import ModelExport, trained_tensors
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.lora import ADAPTER, is_lora
from vlm.models.vision.eva import EvaViT
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
    linear = bridge_index(model, Linear)
    if linear is not None:
        pairs.append((f"{PROJECTION}{{rest}}", f"bridge.{linear}.proj.{{rest}}"))
    pairs += lora_pairs("llama_model.base_model.model.{rest}", "llm.model.{rest}")
    ignored = ["*.rotary_emb.inv_freq", "*.position_ids"]
    qformer = bridge_index(model, QFormer)
    if qformer is not None:
        inner = blip2_qformer.key_map(qformer, model.bridge[qformer].config.reads_text is not None)
        pairs += inner.pairs
        ignored += inner.ignored
    if isinstance(model.vision, EvaViT):
        pairs += [(f"visual_encoder.{a}", b) for a, b in eva.key_map(len(model.vision.vit.blocks)).pairs]
        pairs.append(("ln_vision.{rest}", "vision.ln_vision.{rest}"))
    return KeyMap(tuple(pairs), tuple(ignored))


@register_checkpoint_format("minigpt4")
class MiniGPT4(TrainedParts):
    """A published ``.pth`` of the four families. Fills what trains and no earlier file has filled."""

    @classmethod
    def recognises(cls, names: Collection[str]) -> bool:
        """Whether the file holds a projection into the LLM."""
        return any(name.startswith(PROJECTION) for name in names)

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`. LoRA that the composition does not have is reported under the file's names."""
        if not self.recognises(tensors):
            raise not_trained(file, tensors, ["minigpt4"])
        result = super().rename(model, tensors, file, filled)
        known = set(model.state_dict())
        for ours in [key for key in result.tensors if is_lora(key) and key not in known]:
            del result.tensors[ours]
            result.unknown.append(result.theirs.pop(ours))
        return result

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        return key_map(model)

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """Tell projections for another LLM, or for another bridge, apart."""
        for key, text in shapes.items():
            if key.startswith("bridge.") and key.endswith("proj.weight"):
                rows, columns, width, inner = map(int, re.findall(r"\d+", text))
                if rows != width:
                    family = LLM_WIDTHS.get(rows, "another")
                    return f"this is {family} projection (width {rows}); your LLM has width {width}"
                return f"this projection takes {columns} features per token; your bridge gives {inner} (another family)"
        return super().hint(shapes)


@register_export("default")
@register_export("minigpt")
class MiniGPT4Export(ModelExport):
    """One .pth file of MiniGPT-4 or MiniGPT-v2."""

    def save(self, model: VLM, path: Path) -> list[str]:
        """Write ``{"model": {...}}`` with the names of peft 0.2; see :class:`ModelExport`."""
        state = trained_tensors(model, key_map(model).theirs, "published MiniGPT checkpoints")
        state = {key.replace(f".{ADAPTER}.weight", ".weight") if is_lora(key) else key: t for key, t in state.items()}
        torch.save({"model": state}, path)
        return list(state)
