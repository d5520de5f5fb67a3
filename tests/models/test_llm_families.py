"""Families of language models: what transformers computes is what is computed here, or the family is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlm.checkpoint.formats.hf_llm import HFFolder
from vlm.checkpoint.load import load_file as fill
from vlm.common.errors import ConfigError, WeightsError
from vlm.models.llm.hf import HFCausalLM

ONE_ROW = {
    "gemma2": "capped attention scores and logits",
    "gemma3_text": "windows in some layers",
    "llama4_text": "chunks, and its base model under another name",
    "mistral": "windows in all layers",
    "mixtral": "experts, in the published layout one by one",
    "nemotron": "passes nothing on to its attention",
    "olmo3": "windows in some layers",
    "qwen2": "windows from a layer on",
}
"""Families whose samples can share a row, and what is particular about them."""
APART = {
    "bloom": "position biases from the mask; an MLP with two inputs",
    "doge": "changes its mask",
    "lfm2": "convolutions",
    "mamba": "recurrent",
    "opt": "positions of its own; a decoder within the base model",
    "recurrent_gemma": "recurrent, without a cache to keep",
}


MORE_ONE_ROW = (
    *("cohere", "cohere2", "deepseek_v3", "ernie4_5", "exaone4", "gemma", "glm4", "gpt_neox", "gpt_oss", "granite"),
    *("granitemoe", "hunyuan_v1_dense", "llama", "olmo2", "olmoe", "phi", "phi3", "qwen2_moe", "qwen3", "qwen3_moe"),
    *("seed_oss", "smollm3", "starcoder2"),
)
MORE_APART = ("falcon", "gpt2", "gptj", "jamba", "mpt", "qwen3_next", "stablelm")
"""Families that are tried less often."""


@pytest.fixture(autouse=True)
def _tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))


@pytest.mark.parametrize("family", [*ONE_ROW, *APART])
def test_as_transformers(family: str, tmp_path) -> None:
    """Logits, loss, gradients, answers, beams; packed rows and padded batches have the loss of single samples."""
    from llm_families import checks

    assert list(checks(family, tmp_path)) == ["[one row]" if family in ONE_ROW else "[apart]"]


@pytest.mark.heavy
@pytest.mark.parametrize("family", [*MORE_ONE_ROW, *MORE_APART])
def test_more_families(family: str, tmp_path) -> None:
    from llm_families import checks

    assert list(checks(family, tmp_path)) == ["[one row]" if family in MORE_ONE_ROW else "[apart]"]


@pytest.mark.parametrize(
    ("family", "reason"),
    [("bert", "it is an encoder"), ("deepseek_v4", "cannot be run on embeddings")],
)
def test_refused_when_built(family: str, reason: str) -> None:
    from llm_families import small

    sizes = {k: v for k, v in small(family).to_dict().items() if k != "model_type"}
    with pytest.raises(ConfigError, match=f"cannot be the language model: .*{reason}"):
        HFCausalLM(HFCausalLM.Config(config={"model_type": family, **sizes}, dtype="fp32"))


def filled(folder: Path, **options: object) -> HFCausalLM:
    holder = nn.Module()
    holder.llm = HFCausalLM(HFCausalLM.Config(path=str(folder), dtype="fp32", **options)).float().eval()
    fill(holder, HFFolder("llm"), folder)
    return holder.llm


def test_a_missing_expert_is_named(tmp_path) -> None:
    from llm_families import reference

    reference("mixtral", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors.pop("model.layers.0.block_sparse_moe.experts.1.w1.weight") is not None
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"layers\.0\.mlp\.experts\.gate_up_proj"):
        filled(tmp_path)


@pytest.mark.parametrize("new_rows", ["random", "mean"])
def test_a_tied_head_grows_with_the_vocabulary(tmp_path, new_rows: str) -> None:
    from llm_families import reference

    theirs = reference("qwen3", tmp_path)
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    llm = filled(tmp_path, vocab_size=100, new_rows=new_rows, banned_ids=[99])
    for table in (llm.model.model.embed_tokens.weight, llm.model.lm_head.weight):
        assert len(table) == 100
        assert torch.equal(table[:96], theirs.lm_head.weight)
    assert not llm.model.lm_head.weight[99].any()


def test_attention_that_skips_the_interface_is_found_out(monkeypatch) -> None:
    """A layer whose attention sees the whole row, which shows only when it runs."""
    from llm_families import loss, rows, small

    sizes = {k: v for k, v in small("llama").to_dict().items() if k != "model_type"}
    llm = HFCausalLM(HFCausalLM.Config(config={"model_type": "llama", **sizes}, dtype="fp32")).eval()
    packed = rows([[9, 6]], llm, [[list(range(3, 12)), list(range(5, 11))]])
    assert loss(llm, packed).isfinite()
    assert llm.packs
    monkeypatch.setattr(llm.layers()[1].self_attn, "forward", lambda hidden_states, **_: (hidden_states, None))
    assert loss(llm, packed).isfinite()
    assert not llm.packs
