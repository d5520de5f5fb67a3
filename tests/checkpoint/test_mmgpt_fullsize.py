"""Key maps at full size: the Multimodal-GPT composition on the meta device against the published files' key lists."""

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
from vlm.systems.mmgpt.checkpoint import published_names
from vlm.systems.open_flamingo.checkpoint import read_state

pytestmark = pytest.mark.slow

MANIFEST = json.loads((Path(__file__).parents[1] / "golden" / "mmgpt" / "manifest.json").read_text())
COUNTS = MANIFEST["counts"]
LLAMA = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
LLAMA |= {"num_attention_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False, "rms_norm_eps": 1e-6}


def listed(begin: str) -> dict[str, torch.Tensor]:
    """Meta tensors of the manifest entry whose name begins so."""
    keys = next(v["keys"] for k, v in MANIFEST.items() if k.startswith(begin))
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    asked: dict[str, Any] = {"arch": "mmgpt", "model_type": "open_flamingo_9b_lora", "lm_path": str(folder)}
    return build_model(load_config({"model": asked | {"pretrained_path": ""}}, check="none").model, device="meta")


def fill(model: VLM, kind: str, tensors: dict[str, torch.Tensor], filled: set[str]) -> set[str]:
    loader = resolve("checkpoint_format", kind)()
    if kind in ("openflamingo", "mmgpt_lora"):
        tensors = read_state(tensors, kind)
    return copy_strictly(model, loader.rename(model, tensors, kind, filled), loader.hint)


def test_every_key_has_a_place_and_every_place_a_key(model: VLM) -> None:
    files = {
        "openai_clip": listed("clip"),
        "hf_llm": listed("llama-7b_hf"),
        "openflamingo": listed("OpenFlamingo"),
        "mmgpt_lora": listed("mmgpt-lora"),
    }
    done: dict[str, set[str]] = {}
    for kind, tensors in files.items():
        done[kind] = fill(model, kind, tensors, set().union(*done.values()))
    assert set().union(*done.values()) == set(targets(model))
    assert done["hf_llm"] & done["openflamingo"] == {"llm.model.model.embed_tokens.weight"}
    assert len(done["mmgpt_lora"]) == COUNTS["lora_tensors"]
    assert len(done["openflamingo"]) == 69 + 88 + 1


def test_names_go_back(model: VLM) -> None:
    assert set(published_names(model).values()) == set(listed("mmgpt-lora"))


def test_parameter_counts(model: VLM) -> None:
    training = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(training.values()) == COUNTS["mmgpt_trainable_parameters"] == 23_461_888
    decayed = {n: size for n, size in training.items() if n.startswith("inserts.")}
    assert (len(decayed), sum(decayed.values())) == (COUNTS["tensors_with_weight_decay"], 6_684_672)
    assert sum(p.numel() for p in model.bridge.parameters()) == COUNTS["perceiver_parameters"]
    ends = ("visual.ln_post", "visual.proj")
    unused = [t for k, t in listed("clip").items() if not k.startswith("visual.") or k.startswith(ends)]
    total = sum(p.numel() for p in model.parameters()) + sum(t.numel() for t in unused)
    assert total == COUNTS["all_parameters_with_lora"]
    table = model.llm.model.get_input_embeddings().weight.numel()
    flamingo = sum(p.numel() for n, p in model.named_parameters() if n.startswith(("bridge.", "inserts.")))
    assert flamingo + table - sum(decayed.values()) == COUNTS["openflamingo_trainable_parameters"]


def test_names_of_older_peft(model: VLM) -> None:
    old = {key.replace(".default.weight", ".weight"): t for key, t in listed("mmgpt-lora").items()}
    assert len(fill(model, "mmgpt_lora", old, set())) == COUNTS["lora_tensors"]
