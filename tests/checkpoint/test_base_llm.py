"""What a run trained is refused on frozen weights of the same shapes that it was not trained with."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.checkpoint.load import load_model
from vlm.checkpoint.provenance import KEY, fingerprint, make_provenance, other_numbers
from vlm.checkpoint.run_folder import RunDir
from vlm.checkpoint.safe import write_json
from vlm.checkpoint.stream import write_shards
from vlm.common.errors import WeightsError
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import LoraOptions
from vlm.models.vlm import VLM
from vlm.testing import LLAMA, part, tiny_config, tiny_model, weight


def llm_folder(folder: Path, seed: int, dtype: torch.dtype = torch.float32, write: Any = write_shards) -> Path:
    """A random LLM with the sizes of the tiny model."""
    torch.manual_seed(seed)
    tensors = {k: t.detach().to(dtype) for k, t in tiny_model().llm.model.state_dict().items()}
    if seed:
        tensors = {k: t + 0.05 * torch.randn(t.shape).to(dtype) for k, t in tensors.items()}
    folder.mkdir(exist_ok=True)
    write(folder, tensors, lambda name: tensors[name])
    write_json(folder / "config.json", LLAMA)
    return folder


def configuration(llm: Path, run: Path | None, lora: bool = False, **options: Any) -> Any:
    options = {"path": str(llm)} | options | ({"lora": LoraOptions(2, 4.0, 0.0, ["q_proj"])} if lora else {})
    weights = [weight("random", into="vision"), weight("random", into="bridge.0"), weight("hf_llm", llm, "llm")]
    weights += [weight("run_folder", run)] if run else []
    train = ["bridge.1.*", *(["llm.lora"] if lora else [])]
    return tiny_config(llm=part("hf", HFCausalLM.Config(**options)), weights=weights, train=train)


def save_run(folder: Path, model: VLM, prints: dict[str, Any] | None = None) -> Path:
    tensors = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad or not n.startswith("llm")}
    record = make_provenance(step=1, config={}, fingerprints=prints or fingerprint(model))
    RunDir(folder).save(1, tensors, {}, record, "model: {}\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    model = load_model(configuration(llm_folder(root / "a", 0, torch.float16), None), device="cpu")
    return save_run(root / "run", model)


def test_another_llm_is_refused_and_may_be_asked_for(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = configuration(llm_folder(tmp_path / "b", 1, torch.float16), run)
    with pytest.raises(WeightsError, match=r"run was trained with other frozen weights \(llm: \d+ of 64 numbers"):
        load_model(cfg, device="cpu")
    with pytest.raises(WeightsError, match=r"run\.allow_other_base=true"):
        load_model(cfg, device="cpu")
    cfg.run.allow_other_base = True
    with caplog.at_level("WARNING", "vlm"):
        load_model(cfg, device="cpu")
    assert "trained with other frozen weights" in caplog.text


@pytest.mark.parametrize(
    "dtype, write",
    [
        ("fp32", write_shards),
        ("bf16", partial(write_shards, safetensors=True)),
        ("fp16", partial(write_shards, safetensors=True, shard_bytes=4000)),
    ],
)
def test_the_same_llm_in_any_type_and_container(run: Path, tmp_path: Path, dtype: str, write: Any) -> None:
    folder = llm_folder(tmp_path / "a", 0, torch.bfloat16 if dtype == "bf16" else torch.float16, write)
    load_model(configuration(folder, run, dtype=dtype), device="cpu", dtype=None)
    load_model(configuration(folder, run, lora=True, dtype=dtype), device="cpu")


def test_one_changed_matrix_is_seen_in_half_precision() -> None:
    model = tiny_model()
    record = fingerprint(model)
    filled = set(model.state_dict())
    other = copy.deepcopy(model).bfloat16()
    assert not other_numbers(record, other, filled)
    with torch.no_grad():
        other.llm.model.model.embed_tokens.weight *= 1.02
    assert list(other_numbers(record, other, filled)) == ["llm"]
    assert not other_numbers(record, other, set())


def test_the_weight_file_alone_has_the_record(run: Path, tmp_path: Path) -> None:
    alone = shutil.copyfile(run / "last" / "model.safetensors", tmp_path / "trained.safetensors")
    load_model(configuration(llm_folder(tmp_path / "a", 0), alone), device="cpu")
    with pytest.raises(WeightsError, match="trained with other frozen weights"):
        load_model(configuration(llm_folder(tmp_path / "b", 1), alone), device="cpu")
    tensors = load_file(alone)
    for text, said in (("{", "metadata is damaged"), ('{"llm": 5}', "fingerprint of llm is damaged")):
        save_file(tensors, alone, metadata={"format": "pt", KEY: text})
        with pytest.raises(WeightsError, match=said):
            load_model(configuration(tmp_path / "a", alone), device="cpu")


def test_records_of_earlier_versions_and_damaged_ones(run: Path, tmp_path: Path) -> None:
    model = load_model(configuration(llm_folder(tmp_path / "a", 0), None), device="cpu")
    record = fingerprint(model)
    assert all(len(entry["values"]) == 16 for entry in record["llm"]["sample"].values())
    assert len(json.dumps(record)) < 12000
    earlier = {name: {k: v for k, v in entry.items() if k != "sample"} for name, entry in record.items()}
    other = llm_folder(tmp_path / "b", 1)
    load_model(configuration(other, save_run(tmp_path / "old", model, earlier)), device="cpu")
    for damage in ({"shape": "x"}, {"values": [1]}, {"values": None}):
        odd = copy.deepcopy(record)
        for entry in odd["llm"]["sample"].values():
            entry |= damage
        with pytest.raises(WeightsError, match="fingerprint of llm is damaged"):
            other_numbers(odd, model, set(model.state_dict()))
