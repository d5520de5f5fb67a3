"""The two files of llama.cpp, read back by the package of llama.cpp and by our own reader of language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.common.errors import UserError
from vlm.common.types import Message
from vlm.config.types import Config
from vlm.inference.engine import Engine
from vlm.inference.gguf.export import GGUFExport
from vlm.inference.gguf.language import interleaved
from vlm.inference.hub.weights import StoredWeights
from vlm.inference.load import load_parts
from vlm.models.llm.hf import HFCausalLM
from vlm.testing import part, weight

from .comparing import GREEDY
from .making import llava, saved

gguf = pytest.importorskip("gguf")
CLIP = GGUFExport.Config(form="class-token")
LLMS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "max_position_embeddings": 128},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 12},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
}


def read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Metadata and tensors (in the order of torch)."""
    reader = gguf.GGUFReader(file)
    return (
        {name: field.contents() for name, field in reader.fields.items()},
        {t.name: torch.from_numpy(t.data.copy()).reshape([int(n) for n in t.shape[::-1]]) for t in reader.tensors},
    )


@pytest.mark.parametrize("name", LLMS)
def test_the_language_model_read_back(name: str, tmp_path: Path) -> None:
    cfg = llava(tmp_path / "run", **LLMS[name])
    GGUFExport(CLIP).write(cfg, tmp_path / "out")
    model, processor, _, _ = load_parts(cfg, "cpu", torch.float32)
    whole = Engine(model, processor)
    file = str(tmp_path / "out" / "model.gguf")
    text = Config(model=saved(tmp_path / "other", vision=None, bridge=[], train={}).model)
    text.model.llm = part("hf", HFCausalLM.Config(path=file, dtype="fp32"))
    text.model.text.config.tokenizer = ""
    text.model.weights = [weight("gguf", file)]
    alone = Engine.load(text, "cpu", torch.float32)
    example = whole.examples([[Message("user", "What is a boat?")]])[0]
    with torch.no_grad():
        ours, theirs = (e.model(e.batch([example]), return_logits=True).logits for e in (whole, alone))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert whole.generate_ids([example], GREEDY) == alone.generate_ids([example], GREEDY)
    if name == "llama":
        assert alone.examples([[Message("user", "What is a boat?")]])[0].ids == example.ids


def test_names_metadata_and_numbers(tmp_path: Path) -> None:
    cfg = llava(tmp_path / "run", lora=True)
    lines = GGUFExport(CLIP).write(cfg, tmp_path / "out")
    assert lines[0].endswith("model.gguf (llama, F32) and mmproj.gguf (mlp)") and "pads an image" in lines[1]
    facts, tensors = read(tmp_path / "out" / "mmproj.gguf")
    assert facts["general.architecture"] == "clip" and facts["clip.projector_type"] == "mlp"
    assert facts["clip.vision.block_count"] == 2 and facts["clip.vision.feature_layer"] == [2]
    assert "clip.use_gelu" not in facts  # quick_gelu is the default
    weights = StoredWeights(cfg)
    for theirs, ours in {
        "mm.2.weight": "bridge.0.layers.2.weight",
        "v.blk.1.attn_q.weight": "vision.model.encoder.layers.1.self_attn.q_proj.weight",
        "v.blk.0.ffn_up.bias": "vision.model.encoder.layers.0.mlp.fc1.bias",
        "v.patch_embd.weight": "vision.model.embeddings.patch_embedding.weight",
    }.items():
        assert torch.equal(tensors[theirs], weights.read(ours))
    facts, tensors = read(tmp_path / "out" / "model.gguf")
    assert facts["tokenizer.ggml.model"] == "llama" and len(facts["tokenizer.ggml.tokens"]) == 512
    assert facts["llama.attention.head_count_kv"] == 2 and facts["tokenizer.ggml.add_bos_token"]
    own = weights.read("llm.model.model.layers.1.self_attn.k_proj.weight")
    assert torch.equal(tensors["blk.1.attn_k.weight"], interleaved(2)(own))
    assert not torch.equal(tensors["blk.1.attn_k.weight"], own)
    assert interleaved(1)(torch.arange(6)).tolist() == [0, 3, 1, 4, 2, 5]


def test_half_precision_and_siglip(tmp_path: Path) -> None:
    cfg = llava(tmp_path / "run", siglip=True)
    GGUFExport(GGUFExport.Config(dtype="fp16")).write(cfg, tmp_path / "out")
    facts, tensors = read(tmp_path / "out" / "mmproj.gguf")
    assert facts["clip.use_gelu"] and facts["general.file_type"] == 1
    assert tensors["mm.0.weight"].dtype is torch.float16 and tensors["mm.0.bias"].dtype is torch.float32


def test_what_is_not_of_that_form(tmp_path: Path) -> None:
    cases = {
        "the class token is kept": llava(tmp_path / "a", keep_cls=True),
        "not an MLP of two layers": llava(tmp_path / "b", depth=1),
        "the vision encoder is eva_vit": saved(tmp_path / "c"),
        "the LLM is a opt; GGUF is written of llama, mistral": llava(
            tmp_path / "d", model_type="opt", ffn_dim=40, word_embed_proj_dim=32
        ),
        "rotary positions of type linear": llava(
            tmp_path / "e", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
        ),
    }
    for reason, cfg in cases.items():
        with pytest.raises(UserError, match=reason):
            GGUFExport(CLIP).write(cfg, tmp_path / "out")
    with pytest.raises(UserError, match="llama.cpp computes CLIP otherwise: its LLaVA graph puts the class token"):
        GGUFExport().write(llava(tmp_path / "f"), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
