"""Lynx at full size on the meta device against the published files' key lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.checkpoint.strict import copy_strictly, targets
from vlm.common.registry import resolve
from vlm.config.api import load_config
from vlm.models.build import build_model
from vlm.models.vlm import VLM
from vlm.systems.lynx.checkpoint import Lynx

pytestmark = pytest.mark.slow

MANIFEST = json.loads((Path(__file__).parents[1] / "golden" / "lynx" / "manifest.json").read_text())
SYSTEM = next(v for k, v in MANIFEST.items() if "finetune_lynx.pt" in k)
COUNTS = MANIFEST["parameter_counts"]
LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}


def empty(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def build(folder: Path, **params: Any) -> VLM:
    (folder / "config.json").write_text(json.dumps(LLAMA_7B))
    asked = {"arch": "lynx", "model_type": "finetune", "LLM": str(folder), "vit_path": "", "checkpoint": "", **params}
    return build_model(load_config({"model": asked}, check="none").model, device="meta")


def fill(model: VLM, kind: str, tensors: dict[str, torch.Tensor], filled: set[str]) -> set[str]:
    loader = resolve("checkpoint_format", kind)()
    return copy_strictly(model, loader.rename(model, tensors, kind, filled), loader.hint)


def test_every_key_has_its_place(tmp_path: Path) -> None:
    model = build(tmp_path)
    have = targets(model)
    spare = {f"blocks.39.{end}": [1408] for end in ("norm1.weight", "attn.q_bias")} | {"norm.weight": [1408]}
    vision = fill(model, "eva", empty(MANIFEST["data/eva_vit_g.pth"]["tensors"] | spare), set())
    words = fill(model, "hf_llm", empty(MANIFEST["data/vicuna-7b/"]["tensors"]), vision)
    mine = fill(model, "lynx", empty(SYSTEM["trainable_part_which_must_be_there"]), vision | words)
    assert mine == {name for name, p in model.named_parameters() if p.requires_grad}
    assert vision | words | mine == set(have)
    assert not (vision & mine or words & mine)
    sizes = {name: sum(have[k].numel() for k in keys) for name, keys in (("v", vision), ("l", words), ("m", mine))}
    assert sizes == {"v": COUNTS["vision_encoder"], "l": COUNTS["LLM_without_adapters"], "m": COUNTS["trainable"]}
    adapters = sum(p.numel() for p in model.inserts.parameters())
    assert (adapters, model.bridge[0].positions.numel()) == (COUNTS["adapters"], COUNTS["absolute_frame_pos_embed"])
    assert sum(p.numel() for p in model.parameters()) == COUNTS["total"]


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model.", "model.model."])
def test_whole_model_in_one_file(tmp_path: Path, prefix: str) -> None:
    """Tower at 420 pixels and LLM with its buffers, besides what must be there."""
    model = build(tmp_path)
    llm = {f"LLM.{name}": shape for name, shape in MANIFEST["data/vicuna-7b/"]["tensors"].items()}
    listed = SYSTEM["trainable_part_which_must_be_there"] | SYSTEM["vision_encoder_names_at_420"] | llm
    assert len(listed) == sum(MANIFEST["LynxBase.state_dict()"]["key_families"].values())
    torch.save({f"{prefix}{name}": torch.empty(0) for name in listed}, tmp_path / "names.pt")
    names = list(Lynx().read(tmp_path / "names.pt"))
    assert names == list(listed)
    assert fill(model, "lynx", empty(listed), set()) == set(targets(model))


def test_tower_of_another_resolution(tmp_path: Path) -> None:
    model = build(tmp_path, image_res=224)
    assert model.vision.vit.pos_embed.shape[1] == 257
    listed = SYSTEM["trainable_part_which_must_be_there"] | SYSTEM["vision_encoder_names_at_420"]
    assert "vision.vit.pos_embed" in fill(model, "lynx", empty(listed), set())
