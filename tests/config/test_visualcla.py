"""The shipped composition of VisualCLA: its three ways in, and how it answers."""

from __future__ import annotations

from typing import Any

import pytest

from vlm.config.api import Config, load_config
from vlm.config.schema import ConfigProblems
from vlm.inference.generation import default_generation

BASES = {"text_model": "/llm", "vision_model": "/clip"}


def load(**model: Any) -> Config:
    return load_config({"model": {"arch": "visualcla", "model_type": "7b_v0_1", **model}}, check="none")


def test_delta_over_its_foundations() -> None:
    model = load(**BASES, lora_model="/delta").model
    assert [(w.format, w.path) for w in model.weights] == [
        ("clip", "/clip"),
        ("hf_llm", "/llm"),
        ("visualcla_delta", "/delta"),
    ]
    assert model.vision.config.lora is model.llm.config.lora is model.llm.config.vocab_size is None  # the delta says it
    assert model.bridge[0].config.num_attention_heads is None
    assert model.text.config.tokenizer == "/delta"
    assert {"vision.lora", "llm.lora", "bridge.*", "llm.model.lm_head"} <= model.train.keys()


def test_merged_folder_needs_nothing_else() -> None:
    model = load(visualcla_model="/merged").model
    assert [(w.format, w.path) for w in model.weights] == [("visualcla_merged", "/merged")]
    assert model.vision.config.path == model.llm.config.path == "/merged"
    assert "llm.lora" not in model.train


def test_from_scratch_states_everything() -> None:
    model = load(**BASES, lora_r=4).model
    assert [w.format for w in model.weights] == ["clip", "hf_llm"]
    assert model.vision.config.lora.r == model.llm.config.lora.r == 4
    assert model.llm.config.vocab_size == 49958
    sizes = model.bridge[0].config
    assert (sizes.num_query_tokens, sizes.num_hidden_layers, sizes.num_attention_heads) == (64, 6, 16)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigProblems, match=r"model\.text_model .*must be set: folder of Chinese-Alpaca-Plus-7B"):
        load(lora_model="/delta")


def test_answers_as_published() -> None:
    said = default_generation(load(visualcla_model="/merged"))
    assert (said.max_new_tokens, said.do_sample, said.top_p, said.top_k, said.temperature) == (512, True, 0.9, 40, 0.5)
    assert (said.repetition_penalty, said.no_repeat_ngram_size, said.num_beams) == (1.1, 15, 1)


def test_lora_targets_may_be_one_expression() -> None:
    lora = {"r": 2, "alpha": 4, "targets": r".*self_attn\.(q|k)_proj"}
    assert load(**BASES, lora_r=2, llm={"lora": lora}).model.llm.config.lora.targets == lora["targets"]
    with pytest.raises(ConfigProblems, match=r"lora.*is not a regular expression"):
        load(**BASES, llm={"lora": {"targets": "("}})
    with pytest.raises(
        ConfigProblems, match=r"targets: found 3 \(an integer\), expected a list of a string or a string"
    ):
        load(**BASES, llm={"lora": {"targets": 3}})
