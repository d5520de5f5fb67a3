"""Key maps at full size: the three published compositions on the meta device against the published files' key lists."""

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

MANIFEST = json.loads((Path(__file__).parents[1] / "golden" / "minigpt4" / "manifest.json").read_text())
EVA = "eva_vit_g.pth"
BLIP2 = "blip2_pretrained_flant5xxl.pth"

COMPOSITIONS = [
    ("minigpt4", "pretrain_vicuna0", "LLM vicuna v0 7b", "prerained_minigpt4_7b.pth"),
    ("minigpt4", "pretrain_vicuna0", "LLM vicuna v0 13b", "pretrained_minigpt4.pth"),
    ("minigpt4", "pretrain_llama2", "LLM Llama-2-7b-chat-hf", "pretrained_minigpt4_llama2_7b.pth"),
    ("minigpt_v2", "pretrain", "LLM Llama-2-7b-chat-hf", "minigptv2_checkpoint.pth"),
]


def listed(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Meta tensors of the manifest entry whose name begins with ``name``, and the entry."""
    entry = next(v for k, v in MANIFEST.items() if k.startswith(name))
    keys = next(v for k, v in entry.items() if k.startswith(("used_by_model", "model", "state_dict")))
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}, entry


def llm_config(shapes: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The config.json whose sizes the listed shapes imply."""
    vocab, hidden = shapes["model.embed_tokens.weight"].shape
    half_head = shapes["model.layers.0.self_attn.rotary_emb.inv_freq"].shape[0]
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": len({key.split(".")[2] for key in shapes if key.startswith("model.layers.")}),
        "num_attention_heads": hidden // (2 * half_head),
        "tie_word_embeddings": False,
    }


def fill(model: VLM, kind: str, tensors: dict[str, torch.Tensor], filled: set[str]) -> set[str]:
    loader = resolve("checkpoint_format", kind)()
    return copy_strictly(model, loader.rename(model, tensors, kind, filled), loader.hint)


def numel(tensors: dict[str, torch.Tensor], keys: set[str]) -> int:
    return sum(tensors[key].numel() for key in keys)


@pytest.mark.parametrize(("arch", "kind", "llm", "trained"), COMPOSITIONS, ids=[c[3] for c in COMPOSITIONS])
def test_every_key_has_its_place(arch: str, kind: str, llm: str, trained: str, tmp_path: Path) -> None:
    llm_keys, llm_entry = listed(llm)
    (tmp_path / "config.json").write_text(json.dumps(llm_config(llm_keys)))
    asked = {"arch": arch, "model_type": kind, "llama_model": str(tmp_path)}
    config = load_config({"model": asked, "run": {"task": "image_text_pretrain"}}, check="none")
    model = build_model(config.model, device="meta")
    have = targets(model)
    eva_keys, eva_entry = listed(EVA)
    spare = {k: torch.empty(s, device="meta") for k, s in eva_entry["also_expected_in_file (not used)"].items()}
    filled = fill(model, "eva", eva_keys | spare, set())
    assert numel(have, filled) - _interpolated(have, eva_keys) == eva_entry["params_used"]
    if arch == "minigpt4" and kind == "pretrain_vicuna0":
        blip_keys, blip_entry = listed(BLIP2)
        blip = fill(model, "blip2_qformer", blip_keys, filled)
        dropped = [k for k in blip_keys if k in blip_entry["ignored_on_load"] or k.endswith("position_ids")]
        assert numel(have, blip) == blip_entry["params"] - sum(blip_keys[k].numel() for k in dropped)
        filled |= blip
    words = fill(model, "hf_llm", llm_keys, filled)
    assert numel(have, words) == llm_entry["params"]
    filled |= words
    mine = fill(model, "trained", listed(trained)[0], filled)
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert mine == training
    assert any(is_lora(name) for name in mine) == (arch == "minigpt_v2")
    left = set(have) - filled - mine
    assert left <= {"vision.ln_vision.weight", "vision.ln_vision.bias"}
    assert bool(left) == (kind != "pretrain_vicuna0")


def _interpolated(have: dict[str, torch.Tensor], eva_keys: dict[str, torch.Tensor]) -> int:
    """Parameters that the position table has more than the file's, when the image is larger."""
    return have["vision.vit.pos_embed"].numel() - eva_keys["pos_embed"].numel()
