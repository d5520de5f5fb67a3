"""A timm encoder from its own weight file."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from vlm.checkpoint.load import load_model
from vlm.common.errors import WeightsError
from vlm.config.api import load_config

LLM = Path(__file__).resolve().parents[1] / "golden" / "minigpt4" / "open" / "llm"
SIZES = {"depth": 1, "embed_dim": 24, "num_heads": 2}


def config(weights: Path, **sizes: int) -> dict:
    return {
        "model": {
            "vision": {
                "name": "timm", "model": "vit_tiny_patch16_224", "image_size": 32, "options": {**SIZES, **sizes}
            },
            "bridge": [{"name": "mlp", "depth": 2}],
            "fusion": {"name": "splice"},
            "llm": {"name": "hf", "path": str(LLM)},
            "template": {"name": "plain"},
            "image": {"size": 32},
            "train": ["bridge.*"],
            "weights": [
                {"format": "state_dict", "path": str(weights), "into": "vision"},
                {"format": "hf_llm", "path": str(LLM), "into": "llm"},
            ],
        }
    }  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, **SIZES)
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def test_the_encoder_computes_what_timm_computes(file: Path) -> None:
    model = load_model(load_config(config(file)), device="cpu")
    torch.manual_seed(5)
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, **SIZES).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = model.vision(pixels[:, None]).tokens[:, 0], encoder.forward_features(pixels)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_another_size_is_refused_with_the_names(file: Path) -> None:
    with pytest.raises(WeightsError, match="encoder.safetensors does not fit") as error:
        load_model(load_config(config(file, depth=2)), device="cpu")
    assert "blocks.1" in str(error.value)
