"""GGUF files: the language model that transformers makes of them, and files that somebody sent."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf")

from vlm.checkpoint.formats.gguf import GGUFLanguageModel
from vlm.checkpoint.load import load_file
from vlm.common.errors import WeightsError
from vlm.models.llm.hf import HFCausalLM, read_config
from vlm.models.lora import LoraOptions
from vlm.processors.tokenizer.chat_template import read_chat_template
from vlm.processors.tokenizer.tokenizer import Tokenizer

from .gguf_files import CHAT, FAMILIES, TOKENS, model_of, write


def filled(file: Path, **options: Any) -> HFCausalLM:
    holder = nn.Module()
    holder.llm = HFCausalLM(HFCausalLM.Config(path=str(file), dtype="fp32", **options)).float().eval()
    load_file(holder, GGUFLanguageModel("llm"), file)
    return holder.llm


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_that_was_written(family: str, tmp_path: Path) -> None:
    model, file = model_of(family), tmp_path / "model.gguf"
    write(file, model)
    llm = filled(file)
    assert llm.model.config.model_type == family
    ids = torch.randint(3, len(TOKENS), (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (llm.model(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() < 1e-4


def test_scaled_rotary_frequencies(tmp_path: Path) -> None:
    """Llama 3.1: the file has the divisor of each frequency, and not the rule."""
    rule = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**rule, "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    model = model_of("llama", rope_parameters=rope)
    write(tmp_path / "model.gguf", model)
    llm = filled(tmp_path / "model.gguf")
    ids = torch.randint(3, len(TOKENS), (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (llm.model(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() < 1e-4


@pytest.mark.parametrize("quantisation", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_numbers_are_those_of_transformers(quantisation: str, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", model_of("llama"), quantisation)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    llm = filled(tmp_path / "model.gguf")
    for name, value in theirs.state_dict().items():
        assert torch.equal(llm.model.state_dict()[name], value), name


def test_the_tokenizer_and_its_template(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", model_of("qwen2"))
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.Y"}}')  # not the file's own
    ours = Tokenizer.from_folder(tmp_path / "model.gguf")
    (tmp_path / "tokenizer_config.json").unlink()
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in ("the tin", "<|im_start|>in an<|im_end|>"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert (ours.bos, ours.eos) == (1, 2)
    template = read_chat_template(tmp_path / "model.gguf")
    assert template is not None
    assert template.text == CHAT


def test_more_rows_and_lora(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", model_of("qwen2"))
    llm = filled(tmp_path / "model.gguf", vocab_size=64, new_rows="mean", lora=LoraOptions(r=2, targets=["q_proj"]))
    tables = (llm.model.get_input_embeddings().weight, llm.model.get_output_embeddings().weight)
    for table in tables:
        assert table.shape == (64, 64)
        assert torch.allclose(table[-1], table[: len(TOKENS)].mean(0), atol=1e-5)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("gguf") / "good.gguf"
    write(file, model_of("llama"), "Q8_0")
    return file.read_bytes()


def broken(content: bytes, change: str) -> bytes:
    """A file with one fault."""

    def at(key: str) -> int:
        return content.index(key.encode()) + len(key)

    def put(place: int, value: bytes) -> bytes:
        return content[:place] + value + content[place + len(value) :]

    big = struct.pack("<Q", 2**63)
    block = at("llama.block_count") + 4
    table = at("token_embd.weight")
    changes = {
        "cut": content[:-100],
        "header": content[:20],
        "tensors": put(8, big),
        "negative": put(8, b"\xff" * 8),
        "keys": put(16, big),
        "key length": put(24, big),
        "version": put(4, struct.pack("<I", 9)),
        "array": put(at("tokenizer.ggml.tokens") + 8, big),
        "dimensions": put(table, struct.pack("<I", 2**31)),
        "shape": put(table + 4, big),
        "zero": put(table + 4, bytes(8)),
        "quantisation": put(table + 20, struct.pack("<I", 77)),
        "offset": put(table + 24, big),
        "architecture": content.replace(b"llama", b"llamx"),
        "layers": put(block, struct.pack("<I", 2**31)),
        "width": put(at("llama.embedding_length") + 4, struct.pack("<I", 2**30)),
    }
    return changes[change]


SAID = {
    "cut": "cut off: .* ends at byte",
    "header": "only 4 are left|that the file has|left in the file",
    "tensors": "9,223,372,036,854,775,808 tensors, which need more bytes",
    "negative": "18,446,744,073,709,551,615 tensors, which need more bytes",
    "keys": "metadata keys, which need more bytes",
    "key length": "a key of .* bytes, but only",
    "version": "found version 9",
    "array": "texts in tokenizer.ggml.tokens, which need more bytes",
    "dimensions": "with 2,147,483,648 dimensions",
    "shape": "cut off|not in blocks",
    "zero": "of the shape",
    "quantisation": "unknown quantisation 77 .known: .*Q8_0",
    "offset": "cut off: token_embd.weight",
    "architecture": "architecture 'llamx' is not one that transformers reads .*llama",
    "layers": "no model has the sizes of its metadata|layers",
    "width": "its metadata declare .* parameters, its tensors have",
}


@pytest.mark.parametrize("change", SAID)
def test_a_file_that_declares_what_it_does_not_have(change: str, good: bytes, tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(broken(good, change))
    with pytest.raises(WeightsError, match=SAID[change]) as caught:
        read_config(HFCausalLM.Config(path=str(file)))
    assert "fix: " in str(caught.value)
