"""The guide "bring your own parts" at tiny size: its YAML, checked, trained and asked."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import vlm
from vlm.checkpoint.fits import misfits
from vlm.checkpoint.load import load_model
from vlm.config.api import load_config

sys.path.insert(0, str(Path(__file__).parent))
from pages import ROOT, blocks  # noqa: E402

TEXT = (ROOT / "docs" / "guides" / "own_parts.md").read_text(encoding="utf-8")
TEMPLATE = (
    "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
TOWERS: dict[str, Any] = {
    "siglip2-base-patch16-384": SiglipVisionModel(SiglipVisionConfig(**SIZES, image_size=56)),
    "siglip2-base-patch16-naflex": Siglip2VisionModel(Siglip2VisionConfig(**SIZES, num_patches=16)),
    "dinov2-large": Dinov2Model(Dinov2Config(**SIZES, image_size=28)),
    "clip-vit-large-patch14-336": CLIPVisionModel(CLIPVisionConfig(**SIZES, image_size=56)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the guide names, with tiny models."""
    place = tmp_path_factory.mktemp("own_parts")
    for name, tower in TOWERS.items():
        tower.save_pretrained(place / name)
    llm = place / "Qwen3-0.6B"
    shutil.copytree(ROOT / "vlm" / "assets" / "tiny" / "llm", llm)
    (llm / "chat_template.jinja").write_text(TEMPLATE)
    (place / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (60 + 20 * number, 50), (60 * number, 0, 90)).save(place / "images" / f"{number}.png")
    records = [{"image": f"{n}.png", "question": "What is it?", "answer": f"Number {n}."} for n in range(4)]
    (place / "mine.jsonl").write_text("\n".join(map(json.dumps, records)))
    return place


def block(number: int, folder: Path) -> dict[str, Any]:
    """A YAML block of the guide with paths and sizes of the tiny models."""
    text = blocks(TEXT, "yaml")[number].replace("/models/", f"{folder}/").replace("/data/", f"{folder}/")
    return yaml.safe_load(re.sub(r"(size: )\d+", r"\g<1>56", text))


def whole(number: int, folder: Path) -> dict[str, Any]:
    """The first block, with the keys of ``model`` that another one shows."""
    config = block(0, folder)
    shown = block(number, folder)["model"] if number else {}
    weights = [w for w in config["model"]["weights"] if w["format"] == "hf_llm"]
    towers = (
        shown.get("weights") or [{"format": "hf_vision", "path": shown["vision"]["path"], "into": "vision"}]
        if number
        else []
    )
    config["model"] |= shown | ({"weights": [*towers, *weights]} if number else {})
    config["run"] |= {"max_steps": 2, "num_workers": 0, "device": "cpu", "output_dir": str(folder / f"run{number}")}
    config["datasets"]["mine"]["batch_size"] = 4
    return config


def test_the_model_checks_trains_and_answers(folder: Path) -> None:
    torch.set_num_threads(1)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(whole(0, folder)))
    assert not misfits(load_config(path))
    result = vlm.train(path)
    assert result.step == 2
    engine = vlm.load(result.path)
    assert engine.model.tokens_per_frame == 4
    assert isinstance(engine.chat("What is it?", image=folder / "images" / "1.png", max_new_tokens=3), str)


@pytest.mark.parametrize("number", [1, 2])
def test_the_variants_check_and_load(number: int, folder: Path) -> None:
    """Native sizes, and two towers, whose images here have sizes of their own."""
    config = whole(number, folder)
    if number == 1:
        config["model"]["image"] |= {"multiple": 28, "least": 784, "most": 12544}
    loaded = load_config(config)
    assert not misfits(loaded)
    model = load_model(loaded, device="cpu")
    height, width = (28, 84) if number == 1 else (56, 56)
    tokens = model.encode(torch.randn(2, 1, 3, height, width)).tokens
    assert tokens.shape[2] == (3 if number == 1 else 16)


def test_the_towers_can_be_read_from_a_whole_model(folder: Path) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 30}
    vision = CLIPVisionConfig(**SIZES, image_size=56)
    theirs = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text | {"num_attention_heads": 2}, image_token_index=5)
    ).eval()
    theirs.save_pretrained(folder / "llava")
    config = whole(0, folder)
    config["model"]["vision"] = {"name": "hf_vision", "path": str(folder / "llava"), "layer": -2}
    config["model"]["weights"][0]["path"] = str(folder / "llava")
    model = load_model(load_config(config), device="cpu")
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        found = theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(model.vision(pixels[None]).tokens[0], found, atol=1e-5, rtol=1e-5)
