"""``vlm config check`` builds the model on the device ``meta`` and compares it with the headers of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.checkpoint import fits
from vlm.checkpoint.fits import misfits
from vlm.cli.main import main
from vlm.common.paths import asset
from vlm.config.api import load_config

TINY = "tiny/minigpt4"
TEXT = {"name": "hf", "config": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 100}}  # fmt: skip
CLIP = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64,
        "image_size": 32, "patch_size": 8}  # fmt: skip
RANDOM = [{"format": "random", "into": part} for part in ("llm", "vision")]


def found(cfg: Any, *options: str) -> str:
    return "\n".join(map(str, misfits(load_config(cfg, options, check="weights"))))


def test_what_ships_fits() -> None:
    assert found(TINY) == ""


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("model.num_query_token=3", "query_tokens (file [1, 16, 128], model [1, 3, 128])"),
        ("model.vision.mlp_ratio=2", "blocks.0.mlp"),
        ("model.vision.depth=9", "missing: vision.vit.blocks"),
        ("model.bridge.0.intermediate_size=100", "of another shape"),
        ("model.bridge.1.out_dim=7", "model.bridge ends at width 7, but the LLM's width is"),
        ("model.text.tokens_per_medium=9", "tokens_per_medium is 9, but vision and bridge give 16 tokens"),
        ("model.train.nothing=true", "'nothing' selects no parameter"),
        ("run.lr_scale.brige.*=3", "run.lr_scale: 'brige.*' selects nothing that trains; nearest: bridge"),
        ("run.weight_decay_on=[vision.*]", "run.weight_decay_on: 'vision.*' selects nothing that trains"),
        ("run.lr_scale.bridge.1.*=3", ""),
        ("model.llm.vocab_size=7", ""),
        (f"model.q_former_model={asset('tiny/eva_vit.safetensors')}", "unexpected"),
        (f"model.vit_path={asset('tiny/llm/config.json')}", "not a weight file"),
        ("model.weights=[{format: random, into: bridge}]", "llm, vision: frozen, but no file"),
    ],
)
def test_problems_are_named_before_anything_is_loaded(option: str, words: str) -> None:
    text = found(TINY, option)
    assert words in text and bool(words) == bool(text)


def test_all_files_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "old.pth"
    torch.save(
        {"model": {k: v[..., :1].clone() for k, v in load_file(asset("tiny/qformer.safetensors")).items()}}, file
    )
    vision = load_file(asset("tiny/eva_vit.safetensors"))
    save_file({k: v for k, v in vision.items() if k != "cls_token"}, tmp_path / "cut.safetensors")
    options = [f"model.q_former_model={file}", f"model.vit_path={tmp_path / 'cut.safetensors'}"]
    assert main(["config", "check", TINY, "--options", *options]) == 2
    err = capsys.readouterr().err
    assert "2 problems" in err and "missing: vision.vit.cls_token" in err and "of another shape" in err


def test_the_model_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    build = fits.build_model
    monkeypatch.setattr(fits, "build_model", lambda *a, **k: made.append(build(*a, **k)) or made[-1])
    assert found(TINY) == ""
    assert {p.device.type for p in made[0].parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("part", "options", "words"),
    [
        ("llm", {"num_attention_heads": 5}, "not a multiple of the number of attention heads (5)"),
        ("llm", {"num_attention_heads": 0}, "model.llm: hf cannot be built"),
        ("llm", {"hidden_size": "big"}, "expected int, got str"),
        ("llm", {"num_hidden_layers": -1}, "num_hidden_layers is -1, expected an integer from 1"),
        ("llm", {"vocab_size": 0}, "0 tokens"),
        ("vision", {"patch_size": 5}, "image_size is 32, expected a multiple of patch_size 5"),
        ("vision", {"patch_size": 0}, "model.vision: clip cannot be built"),
        ("vision", {"num_attention_heads": 5}, "not a multiple of the number of attention heads (5)"),
        ("vision", {"num_hidden_layers": 0}, "num_hidden_layers is 0, expected an integer from 1"),
    ],
)
def test_sizes_written_out(part: str, options: dict[str, Any], words: str) -> None:
    llm = {**TEXT, "config": {**TEXT["config"], **(options if part == "llm" else {})}}
    vision = {"name": "clip", "config": {**CLIP, **(options if part == "vision" else {})}}
    model = {"llm": llm, "vision": vision, "bridge": ["linear"], "template": "plain", "image": {"size": 32}}
    model |= {"weights": RANDOM, "train": {"bridge.*": True}}
    assert words in found({"model": model})


def test_options_that_a_library_does_not_know() -> None:
    vision = {"name": "timm", "model": "vit_tiny_patch16_224", "options": {"colour": 3}}
    model = {"llm": TEXT, "vision": vision, "bridge": ["linear"], "template": "plain", "weights": RANDOM}
    assert "unexpected keyword argument 'colour'" in found({"model": model})
    vision = {"name": "timm", "model": "vit_tiny_patch16_224", "image_size": 225}
    assert "expected a multiple of patch_size 16" in found(
        {"model": model | {"vision": vision, "image": {"size": 225}}}
    )


def test_addresses_are_not_fetched() -> None:
    text = found(TINY, "model.vit_path=https://localhost:1/eva_vit.pth")
    assert text == ""


def test_images_of_another_size_than_the_tower_takes() -> None:
    tower = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = {"name": "hf_vision", "config": {**tower, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}}
    model = {"vision": vision, "bridge": [{"name": "linear"}], "llm": TEXT, "template": "plain", "image": {"size": 42}}
    assert "image.size is 42, but the vision encoder takes images of 28 x 28" in found({"model": model})
