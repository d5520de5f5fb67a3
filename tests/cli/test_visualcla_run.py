"""A run of VisualCLA: from the delta or from scratch, exported as a delta, merged, loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vlm.checkpoint.load import load_model
from vlm.checkpoint.peft_adapter import read_adapter
from vlm.checkpoint.safe import read_tensors
from vlm.cli.main import main
from vlm.common.types import MEDIA_TOKEN, Batch
from vlm.config.api import load_config
from vlm.inference.load import load_parts
from vlm.models.vlm import VLM
from vlm.runners.train.run import run_training

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
OPEN = GOLDEN / "visualcla" / "open"
IMAGES = GOLDEN / "minigpt4" / "open" / "data" / "cc_sbu_align"
DELTA = {name: str(OPEN / name) for name in ("text_model", "vision_model", "lora_model")}
SIZES = {"arch": "visualcla", "model_type": "7b_v0_1", "image_size": 28, "num_query_token": 5}


def train(folder: Path, **model: Any) -> Path:
    """Two steps; the run folder."""
    data = {"mine": {"format": "caption_folder", "build_info": {"storage": str(IMAGES)}, "batch_size": 2}}
    run = {"task": "image_text_pretrain", "max_steps": 2, "iters_per_epoch": 2, "init_lr": 0.01, "num_workers": 0}
    run |= {"device": "cpu", "trackers": [], "report": False, "output_dir": str(folder / "run"), "warmup_steps": 0}
    text = yaml.safe_dump({"model": SIZES | DELTA | model, "datasets": data, "run": run})
    (folder / "train.yaml").write_text(text)
    run_training(load_config(folder / "train.yaml"))
    return folder / "run"


def logits(model: VLM) -> torch.Tensor:
    ids = torch.tensor([[1, 481, MEDIA_TOKEN, 482, 7, 9]])
    where = torch.tensor([0]), torch.tensor([2])
    pixels = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 1, 3, 28, 28)
    with torch.no_grad():
        return model(
            Batch(ids, torch.full_like(ids, -100), torch.ones_like(ids), pixels, *where), return_logits=True
        ).logits


def load(**model: Any) -> VLM:
    return load_model(load_config({"model": SIZES | model}, check="none"), device="cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_fine_tuned_delta_goes_out_merges_and_comes_back(tmp_path: Path) -> None:
    run = train(tmp_path)
    trained = load_parts(run, "cpu")[0]
    before = load(**DELTA)
    assert not torch.allclose(logits(trained), logits(before), atol=1e-2)
    delta = tmp_path / "delta"
    assert main(["weights", "export", str(run), "--to", str(delta), "--format", "visualcla-delta"]) == 0
    published = read_adapter(OPEN / "lora_model")
    ours = read_adapter(delta)
    assert ours.tensors.keys() == published.tensors.keys()
    changed = {n for n, t in ours.tensors.items() if not torch.equal(t, published.tensors[n])}
    assert {n for n in ours.tensors if n not in changed} <= {n for n in ours.tensors if "pooler" in n}
    again = load(**DELTA | {"lora_model": str(delta)})
    torch.testing.assert_close(logits(again), logits(trained))
    asked = ["--text-model", DELTA["text_model"], "--vision-model", DELTA["vision_model"], "--lora-model", str(delta)]
    merged = tmp_path / "merged"
    assert main(["weights", "merge", *asked, "--output-dir", str(merged), "--dtype", "fp32"]) == 0
    torch.testing.assert_close(logits(load(visualcla_model=str(merged))), logits(trained), rtol=0, atol=1e-4)
    out = tmp_path / "webui"
    assert main(["weights", "export", str(run), "--to", str(out), "--format", "text-generation-webui"]) == 0
    assert {f.name for f in out.iterdir()} == {"run_text_lora_model_tgwebui", "run_vision_lora_model_tgwebui"}


def test_training_from_scratch(tmp_path: Path) -> None:
    bridge = {"name": "bert_resampler", "num_query_tokens": 5, "num_hidden_layers": 2, "num_attention_heads": 2}
    chain = [bridge | {"intermediate_size": 48}, {"name": "linear"}]
    scratch: dict[str, Any] = {"lora_model": "", "lora_r": 4, "lora_alpha": 8, "bridge": chain}
    scratch |= {"llm": {"vocab_size": 485}}
    run = train(tmp_path, **scratch)
    held = read_tensors(run / "last" / "model.safetensors")
    for begin in (
        "vision.model.",
        "bridge.0.query_tokens",
        "bridge.1.proj",
        "llm.model.lm_head",
        "llm.model.model.emb",
    ):
        assert any(name.startswith(begin) for name in held), begin
    assert not any("base_layer" in name for name in held)
    delta = tmp_path / "delta"
    assert main(["weights", "export", str(run), "--to", str(delta), "--format", "visualcla-delta"]) == 0
    assert (
        read_tensors(delta / "adapter_model.bin").keys() == read_tensors(OPEN / "lora_model/adapter_model.bin").keys()
    )
    added = json.loads((delta / "added_tokens.json").read_text())
    assert added == json.loads((OPEN / "lora_model" / "added_tokens.json").read_text())
    special = json.loads((delta / "special_tokens_map.json").read_text())
    assert special["additional_special_tokens"] == ["<img>", "</img>", "<pad>", "<img_token>"]
    assert json.loads((delta / "config.json").read_text())["visual_resampler_config"]["num_attention_heads"] == 2
    torch.testing.assert_close(
        logits(load(**DELTA | {"lora_model": str(delta)})), logits(load_parts(run, "cpu")[0]), rtol=0, atol=1e-5
    )


def test_export_of_a_composition_without_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = train(tmp_path, visualcla_model=str(OPEN / "merged_model"))
    assert main(["weights", "export", str(run), "--to", str(tmp_path / "d"), "--format", "visualcla-delta"]) == 2
    assert "LoRA has (r, alpha) nowhere; a delta of VisualCLA holds exactly one pair" in capsys.readouterr().err
