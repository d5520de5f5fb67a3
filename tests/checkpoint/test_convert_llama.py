"""Original LLaMA shards: the Hugging Face folder computes what a plain reading of the original layout computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vlm.checkpoint.convert.llama import LlamaShards
from vlm.checkpoint.safe import read_json, shapes
from vlm.cli.main import main
from vlm.common.errors import WeightsError
from vlm.processors.tokenizer.original import convert_tokenizer, special_tokens
from vlm.processors.tokenizer.tokenizer import Tokenizer

from .original_llama import HEAD, HEADS, KV, LAYERS, SENTENCEPIECE, tensors, write_ranks, write_shards


def original_logits(w: dict[str, Tensor], ids: Tensor, theta: float, eps: float) -> Tensor:
    """The forward pass of the original code: neighbouring dimensions of a head turn together, as complex numbers."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def turn(x: Tensor) -> Tensor:  # [s, heads, HEAD]
        angles = torch.outer(torch.arange(len(x)).float(), theta ** (-torch.arange(0, HEAD, 2).float() / HEAD))
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(2)

    x = w["tok_embeddings.weight"][ids]
    for i in range(LAYERS):
        own = {k.removeprefix(f"layers.{i}."): v for k, v in w.items() if k.startswith(f"layers.{i}.")}
        h = norm(x, own["attention_norm.weight"])
        q, k, v = ((h @ own[f"attention.w{n}.weight"].T).view(len(ids), -1, HEAD) for n in "qkv")
        k, v = (t.repeat_interleave(HEADS // KV, dim=1) for t in (turn(k), v))
        scores = torch.einsum("qhd,khd->hqk", turn(q), k) / HEAD**0.5
        scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
        x = x + torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1) @ own["attention.wo.weight"].T
        h = norm(x, own["ffn_norm.weight"])
        gate = functional.silu(h @ own["feed_forward.w1.weight"].T) * (h @ own["feed_forward.w3.weight"].T)
        x = x + gate @ own["feed_forward.w2.weight"].T
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


def transformers_logits(folder: Path, ids: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(ids[None]).logits[0]


@pytest.mark.parametrize("count", [1, 2])
def test_second_release(tmp_path: Path, count: int) -> None:
    whole = tensors(rows := Tokenizer.from_folder(SENTENCEPIECE.parent).vocab_size)
    source = write_shards(tmp_path / "models" / "7B", whole, count)
    shutil.copyfile(SENTENCEPIECE, tmp_path / "models" / "tokenizer.model")
    target = tmp_path / "hf"
    assert main(["weights", "convert-llama", str(source), str(target), "--shard-gb", "0.00005"]) == 0
    config = read_json(target / "config.json")
    assert (config["vocab_size"], config["max_position_embeddings"], config["num_key_value_heads"]) == (rows, 4096, KV)
    assert (config["bos_token_id"], config["eos_token_id"], config["tie_word_embeddings"]) == (1, 2, False)
    assert len(list(target.glob("model-*.safetensors"))) > 1 and len(shapes(target)) == len(whole)
    assert not list(tmp_path.glob(".hf*"))
    ids = torch.tensor([1, 5, 9, 300, 17, 5, 8])
    torch.testing.assert_close(
        transformers_logits(target, ids), original_logits(whole, ids, 10000.0, 1e-5), atol=1e-4, rtol=0
    )


def test_third_release_with_ranks_and_tied_tables(tmp_path: Path) -> None:
    source = tmp_path / "8B"
    whole = tensors(256 + 12 + 256)
    whole["output.weight"] = whole["tok_embeddings.weight"]
    write_shards(source, whole, 2, by_rows=True, rope_theta=500000.0)
    ranks = write_ranks(source / "tokenizer.model")
    target = tmp_path / "hf"
    assert main(["weights", "convert-llama", str(source), str(target)]) == 0
    config = read_json(target / "config.json")
    assert config["tie_word_embeddings"] and "lm_head.weight" not in shapes(target)
    assert config["max_position_embeddings"] == 8192 and config["rope_theta"] == 500000.0
    ids = torch.tensor([268, 5, 9, 260, 17])
    torch.testing.assert_close(
        transformers_logits(target, ids), original_logits(whole, ids, 500000.0, 1e-5), atol=1e-4, rtol=0
    )
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.from_folder(target), AutoTokenizer.from_pretrained(target)
    assert ours.bos == len(ranks) and ours.vocab_size == 256 + 12 + 256
    text = "The and the 12345 théé in <|eot_id|>"
    expected = [268, *(i for piece in WORDS for i in by_ranks(piece, ranks)), 268 + 9]
    assert ours.encode(text, bos=True) == theirs(text).input_ids == expected
    assert ours.decode(expected) == text.removesuffix("<|eot_id|>")


WORDS = ("The", " and", " the", " ", "123", "45", " théé", " in", " ")


def by_ranks(word: str, ranks: dict[bytes, int]) -> list[int]:
    """The algorithm of tiktoken: join the neighbours whose whole has the lowest rank until none has one."""
    parts = [bytes([b]) for b in word.encode()]
    while len(parts) > 1:
        known = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]
        if not known:
            break
        at = min(known)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts]


def test_special_tokens_and_scaled_positions(tmp_path: Path) -> None:
    for newer, places in ((False, {"<|eot_id|>": 9, "<|reserved_special_token_250|>": 255}), (True, {"<|eot_id|>": 9})):
        listed = special_tokens(newer)
        assert len(listed) == len(set(listed)) == 256
        assert all(listed[place] == text for text, place in places.items())
    whole = tensors(64)
    del whole["output.weight"]
    shards = LlamaShards(write_shards(tmp_path / "1B", whole, 1, rope_theta=500000.0, use_scaled_rope=True))
    config = shards.config()
    assert shards.tied and config["max_position_embeddings"] == 131072
    assert config["rope_scaling"]["factor"] == 32.0 and config["rope_scaling"]["rope_type"] == "llama3"


def test_dtype_is_kept_and_memory_is_one_tensor(tmp_path: Path) -> None:
    whole = tensors(64, torch.bfloat16)
    shards = LlamaShards(write_shards(tmp_path / "7B", whole, 2))
    made: list[str] = []
    make = shards.make
    shards.make = lambda name: made.append(name) or make(name)  # type: ignore[method-assign,func-returns-value]
    (tmp_path / "hf").mkdir()
    (file,) = shards.write(tmp_path / "hf", {})
    from safetensors.torch import load_file

    held = load_file(file)
    assert sorted(made) == sorted(shards.names) and {t.dtype for t in held.values()} == {torch.bfloat16}
    assert torch.equal(held["model.embed_tokens.weight"], whole["tok_embeddings.weight"])


class Foreign:
    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda f: (f / "consolidated.00.pth").unlink(), r"consolidated\.01\.pth is there, consolidated\.00\.pth is"),
        (lambda f: [file.unlink() for file in f.glob("*.pth")], r"no consolidated\.00\.pth"),
        (lambda f: (f / "params.json").unlink(), r"params\.json: no such file"),
        (lambda f: (f / "params.json").write_text('{"dim": "x"}'), r"params\.json: n_heads is None"),
        (lambda f: edit(f, n_layers=3), r"layers\.2\.attention\.wq\.weight is missing"),
        (lambda f: edit(f, n_layers=1), r"layers\.1\..*by params\.json n_layers is 1"),
        (lambda f: edit(f, n_kv_heads=4), r"wk\.weight is \[16, 32\] over 2 shards, by params\.json expected \[32"),
        (lambda f: edit(f, n_heads=5), r"do not fit together"),
        (lambda f: torch.save({"a": Foreign()}, f / "consolidated.01.pth"), r"would run code"),
        (lambda f: torch.save({"a": torch.ones(1)}, f / "consolidated.01.pth"), r"not the same in .*01\.pth"),
        (lambda f: [add(f, i) for i in range(2)], r"unknown tensor vision\.weight"),
    ],
)
def test_bad_input_is_one_message(tmp_path: Path, spoil: Any, said: str) -> None:
    source = write_shards(tmp_path / "7B", tensors(64), 2)
    spoil(source)
    with pytest.raises(WeightsError, match=said):
        LlamaShards(source)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "params.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def add(folder: Path, number: int) -> None:
    file = folder / f"consolidated.{number:02d}.pth"
    torch.save(torch.load(file, weights_only=True) | {"vision.weight": torch.ones(2)}, file)


def test_bad_tokenizers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_shards(tmp_path / "7B", tensors(64), 1)
    command = ["weights", "convert-llama", str(source), str(tmp_path / "hf")]
    assert main(command) == 2 and "tokenizer.model: no such file" in capsys.readouterr().err
    assert main([*command, "--tokenizer", str(SENTENCEPIECE)]) == 2
    assert "tokens, the model 64 rows" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists() and not list(tmp_path.glob(".*"))
    for text, said in (("YQ== 0\nYg== 2\n", "ranks are missing"), ("YQ== 0\n*\n", "line 2 is not a token")):
        (source / "tokenizer.model").write_text(text)
        with pytest.raises(WeightsError, match=said):
            convert_tokenizer(source / "tokenizer.model", tmp_path, newer=False, positions=1)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine.txt").touch()
    assert main(command) == 2 and "already holds files" in capsys.readouterr().err
