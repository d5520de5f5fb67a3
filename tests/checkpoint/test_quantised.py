"""Loading a quantised LLM: a matrix at a time, from full weights or from a folder of quantised ones."""

from __future__ import annotations

import json
import logging
import weakref
from pathlib import Path

import pytest
import torch

from tests.equivalence.tiny import Tiny
from vlm.checkpoint.load import check_base, load_model
from vlm.checkpoint.provenance import fingerprint, make_provenance, other_numbers
from vlm.checkpoint.quantised.kept import INDEX, WEIGHTS
from vlm.common.errors import ConfigError, WeightsError
from vlm.models.quantized import bnb
from vlm.models.quantized.layers import Nf4Linear, QuantisedLinear, quantised_layers
from vlm.models.quantized.llm import check_trains
from vlm.models.quantized.probe import probe

CPU = torch.device("cpu")
COUNT = {"nf4": 12, "int8": 14}  # two layers have 56 inputs, which no block of NF4 divides


@pytest.fixture
def load(tmp_path):
    def loaded(*options: str, training: bool = True):
        return load_model(Tiny(tmp_path).load("run", *options), device="cpu", dtype=torch.float32, training=training)

    return loaded


@pytest.mark.parametrize("mode", ["nf4", "int8"])
def test_only_the_decoder_is_quantised_and_only_once_read(load, mode: str, monkeypatch) -> None:
    seen: list[weakref.ref[torch.Tensor]] = []
    packed = QuantisedLinear.fill

    def fill(self: QuantisedLinear, weight: torch.Tensor | None = None) -> None:
        assert not self.filled and not any(ref() is not None for ref in seen)
        seen.append(weakref.ref(self._floats))
        packed(self, weight)

    monkeypatch.setattr(QuantisedLinear, "fill", fill)
    model, plain = load(f"model.llm.quantize={mode}"), load()
    assert len(seen) == COUNT[mode]  # and of each no matrix was left when the next was read
    named = quantised_layers(model)
    assert len(named) == COUNT[mode] and all(name.startswith("llm.model.model.layers.") for name in named)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in plain.named_parameters() if p.requires_grad
    }
    full = dict(plain.named_parameters())
    for name, layer in named.items():
        matrix = full[f"{name}.weight"].detach()
        assert torch.equal(layer.probe, probe(matrix, matrix.shape))
        error = (layer.dense(torch.float32) - matrix).norm() / matrix.norm()
        assert error < {"nf4": 0.12, "int8": 0.01}[mode]


def test_nf4_answers_and_int8_answers_are_stored_differently(load) -> None:
    assert any(isinstance(m, Nf4Linear) for m in load("model.llm.quantize=nf4", training=False).modules())
    assert not quantised_layers(load("model.llm.quantize=int8", training=False))


def test_the_same_base_is_recognised_quantised_or_not(load, tmp_path, caplog) -> None:
    models = {mode: load(f"model.llm.quantize={mode}") for mode in ("null", "nf4", "int8")}
    prints = {mode: fingerprint(model)["llm"] for mode, model in models.items()}
    assert prints["nf4"]["sample"] == prints["null"]["sample"] == prints["int8"]["sample"]
    assert prints["nf4"]["parameters"] == prints["null"]["parameters"]
    for there in ("null", "nf4"):
        for here in ("null", "nf4", "int8"):
            names = {name for name, _ in models[here].named_parameters()}
            assert not other_numbers(fingerprint(models[there]), models[here], names)
    stored = fingerprint(models["nf4"])
    sample = stored["llm"]["sample"]
    changed = next(key for key in sample if "embed" not in key and "lm_head" not in key)
    sample[changed]["values"][0] += 1
    names = {name for name, _ in models["nf4"].named_parameters()}
    assert "numbers differ" in other_numbers(stored, models["nf4"], names)["llm"]
    weights = tmp_path / "other" / "model.safetensors"
    weights.parent.mkdir()
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, weights)
    (weights.parent / "provenance.json").write_text(json.dumps(make_provenance(step=1, config={}, fingerprints=stored)))
    with pytest.raises(WeightsError, match="was trained with other frozen weights"):
        check_base(models["nf4"], weights, names, False)


def test_kept_weights_are_read_in_place_of_being_made(load, tmp_path, caplog, monkeypatch) -> None:
    folder = tmp_path / "kept"
    options = ("model.llm.quantize=nf4", f"model.llm.quantize_options.keep={folder}")
    with caplog.at_level(logging.INFO):
        first = load(*options)
    assert f"quantised weights kept in {folder}" in caplog.text
    assert sorted(p.name for p in folder.iterdir()) == sorted([INDEX, WEIGHTS])
    monkeypatch.setattr(bnb, "to_nf4", lambda *_: pytest.fail("quantised again"))
    second = load(*options)
    for a, b in zip(quantised_layers(first).values(), quantised_layers(second).values(), strict=True):
        assert torch.equal(a.dense(torch.float32), b.dense(torch.float32)) and torch.equal(a.probe, b.probe)
    assert fingerprint(first) == fingerprint(second)


def test_kept_weights_that_do_not_belong_are_refused(load, tmp_path) -> None:
    folder = tmp_path / "kept"
    keep = f"model.llm.quantize_options.keep={folder}"
    load("model.llm.quantize=nf4", keep)
    with pytest.raises(WeightsError, match="was quantised otherwise: block_size 64, here 32"):
        load("model.llm.quantize=nf4", keep, "model.llm.quantize_options.block_size=32")
    with pytest.raises(WeightsError, match="was quantised otherwise: mode nf4, here int8"):
        load("model.llm.quantize=int8", keep)
    with pytest.raises(WeightsError, match="holds 12 layers, this LLM has 6 to quantise"):
        load("model.llm.quantize=nf4", keep, "model.llm.quantize_options.skip=[layers.1.*]")
    index = folder / INDEX
    text = index.read_text()
    content = json.loads(text)
    name = next(iter(content["layers"]))
    content["layers"][name]["probe"][3] += 0.5
    index.write_text(json.dumps(content))
    with pytest.raises(
        WeightsError, match=rf"other weights than model.weights names \(1 of 12 layers differ, first {name}"
    ):
        load("model.llm.quantize=nf4", keep)
    index.write_text(text)
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="model.safetensors"):
        load("model.llm.quantize=nf4", keep)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(WeightsError, match=f"has no {INDEX}: it holds something else"):
        load("model.llm.quantize=nf4", f"model.llm.quantize_options.keep={other}")
    assert (other / "notes.txt").read_text() == "mine"


def test_what_cannot_be_trained_is_refused_first(tmp_path, monkeypatch, load) -> None:
    tiny = Tiny(tmp_path)
    nf4 = "model.llm.quantize=nf4"
    with pytest.raises(ConfigError, match="model.train has llm.lora, but model.llm.lora is null"):
        check_trains(tiny.load("run", nf4, "model.llm.lora=null").model, CPU)
    with pytest.raises(ConfigError, match="trains the weights of layers.0.self_attn.k_proj and 11 more themselves"):
        load(nf4, "model.train=[llm]")
    with pytest.raises(ConfigError, match="the LLM starts at random"):
        check_trains(tiny.load("run", nf4, "model.weights=[{format: random, into: llm}]").model, CPU)
    with pytest.raises(ConfigError, match="block_size is 48"):
        tiny.load("run", nf4, "model.llm.quantize_options.block_size=48")
    with pytest.raises(ConfigError, match="quantize_options.*blocksize|unknown"):
        tiny.load("run", nf4, "model.llm.quantize_options.blocksize=64")
    monkeypatch.setattr(bnb, "missing", lambda: True)
    with pytest.raises(ConfigError, match="needs the package bitsandbytes, which is not installed"):
        check_trains(tiny.load("run", nf4).model, CPU)
    assert Path(tmp_path).is_dir()
