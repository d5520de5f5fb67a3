"""Key maps at full size: the VisualCLA composition on the meta device against the published files' key lists."""

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
from vlm.models.lora import is_lora
from vlm.models.vlm import VLM

pytestmark = pytest.mark.slow

MANIFEST = json.loads((Path(__file__).parents[1] / "golden" / "visualcla" / "manifest.json").read_text())
RANK = 8
CLIP_SIZES = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14}
CLIP_SIZES |= {"num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224, "hidden_act": "quick_gelu"}
LLM_SIZES = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
LLM_SIZES |= {"num_attention_heads": 32, "vocab_size": 49954, "tie_word_embeddings": False}


def listed(begin: str) -> dict[str, torch.Tensor]:
    """Meta tensors of the manifest entry whose name begins so."""
    shapes = next(v for k, v in MANIFEST.items() if k.startswith(begin))
    fixed = {key: [RANK if n == "r" else n for n in shape] for key, shape in shapes.items()}
    return {key: torch.empty(shape, device="meta") for key, shape in fixed.items()}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Folders with nothing but config.json."""
    for name, sizes in (("text_model", LLM_SIZES), ("vision_model", CLIP_SIZES)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(sizes))
    return {name: str(tmp_path / name) for name in ("text_model", "vision_model")}


def build(folders: dict[str, str], lora: bool) -> VLM:
    """The composition from scratch; without LoRA it is that of a merged folder."""
    asked: dict[str, Any] = {"arch": "visualcla", "model_type": "7b_v0_1", "lora_r": RANK, **folders}
    cfg = load_config({"model": asked}, check="none").model
    if not lora:
        cfg.vision.config.lora = cfg.llm.config.lora = None
        cfg.train = {}
    return build_model(cfg, device="meta")


def fill(model: VLM, kind: str, tensors: dict[str, torch.Tensor], filled: set[str]) -> set[str]:
    loader = resolve("checkpoint_format", kind)()
    return copy_strictly(model, loader.rename(model, tensors, kind, filled), loader.hint)


def test_delta_over_its_foundations(folders: dict[str, str]) -> None:
    model = build(folders, lora=True)
    eyes = fill(model, "clip", listed("vision_model"), set())
    words = fill(model, "hf_llm", listed("text_model"), eyes)
    delta = {key.removeprefix("base_model.model."): t for key, t in listed("lora_model").items()}
    mine = fill(model, "visualcla_delta", delta, eyes | words)
    assert len(mine) == len(delta)
    have = set(targets(model))
    assert eyes | words | mine == have
    assert not eyes & words
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert mine - trains == {"bridge.0.pooler.weight", "bridge.0.pooler.bias"}
    assert trains <= mine
    assert sum(p.numel() for n, p in targets(model).items() if n.startswith("bridge.0.")) == 76_692_480
    assert sum(p.numel() for n, p in targets(model).items() if n.startswith("bridge.1.")) == 4_198_400
    assert model.tokens_per_frame == 64


def test_merged_folder(folders: dict[str, str]) -> None:
    model = build(folders, lora=False)
    tensors = {f"text_model.{k}": t for k, t in listed("merged/text_encoder").items()}
    tensors |= {f"vision_model.{k}": t for k, t in listed("merged/vision_encoder").items()}
    tensors |= listed("merged/pytorch_model.bin")
    filled = fill(model, "visualcla_merged", tensors, set())
    assert filled == set(targets(model))
    assert not any(is_lora(name) for name in filled)
    assert len(tensors) - len(filled) == 33  # 32 inv_freq and one position_ids
