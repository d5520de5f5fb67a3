"""Encoders side by side: each sees what it would see alone, and its files go into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from vlm.checkpoint.load import load_model
from vlm.common.errors import ConfigError
from vlm.config.api import load_config
from vlm.models.trainable import select_trainable
from vlm.models.vision.several import CLIP_MEAN, CLIP_STD, Several
from vlm.processors.image.recipe import ImageRecipe

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {"name": "clip", "config": {**SIZES, "image_size": 56, "patch_size": 14}, "keep_cls": False}
SIGLIP = {
    "name": "hf_vision",
    "config": {"model_type": "siglip_vision_model", **SIZES, "image_size": 28, "patch_size": 7},
}
SIGLIP |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def made(*encoders: dict[str, Any], **options: Any) -> Several:
    torch.manual_seed(0)
    return Several(Several.Config(encoders=list(encoders), **options)).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    levels = torch.rand(2, 2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    return (levels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def alone(vision: Several, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Tokens of each encoder for what it should see."""
    levels = pixels.flatten(0, 1) * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    small = F.interpolate(levels, size=(28, 28), mode="bicubic", antialias=True).clamp(0, 1)
    seen = [pixels, ((small - 0.5) / 0.5).unflatten(0, (2, 2))]
    return [encoder(image).tokens for encoder, image in zip(vision.encoders, seen, strict=True)]


def test_channels_and_tokens(pixels: torch.Tensor) -> None:
    with torch.no_grad():
        vision = made(CLIP, SIGLIP)
        result, parts = vision(pixels), alone(vision, pixels)
        torch.testing.assert_close(result.tokens, torch.cat(parts, dim=-1))
        assert vision.out_dim == 32 and result.tokens.shape[2] == vision.num_tokens == 16 and vision.image_size == 56
        torch.testing.assert_close(vision(pixels[1:, 1:]).tokens[0, 0], result.tokens[1, 1])
        vision = made(CLIP, SIGLIP, combine="tokens")
        torch.testing.assert_close(vision(pixels).tokens, torch.cat(alone(vision, pixels), dim=2))
        assert vision.num_tokens == 32 and vision.out_dim == 16


def test_a_common_grid_and_a_common_width(pixels: torch.Tensor) -> None:
    coarse = {**SIGLIP, "config": {**SIGLIP["config"], "patch_size": 14}}
    with torch.no_grad():
        vision = made(CLIP, coarse, grid=4)
        fine = F.interpolate(alone(vision, pixels)[1].flatten(0, 1).mT.unflatten(2, (2, 2)), (4, 4), mode="bilinear")
        result = vision(pixels)
        torch.testing.assert_close(result.tokens[..., 16:].flatten(0, 1), fine.flatten(2).mT)
        assert result.grid.tolist() == [[4, 4], [4, 4]] and vision.num_tokens == 16
    wide = {**SIGLIP, "config": {**SIGLIP["config"], "hidden_size": 32}}
    vision = made(CLIP, wide, combine="tokens", width=8)
    holder = torch.nn.Module()
    holder.vision = vision
    assert len(select_trainable(holder, ["vision.projections.*"])) == 4
    vision(pixels).tokens.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in vision.projections.parameters())
    assert all(p.grad is None for p in vision.encoders.parameters())


def test_resizing_stays_near_the_encoders_own_recipe() -> None:
    """One further resampling: the difference to an image that is resized once is a few of 256 levels."""
    from PIL import Image

    draw = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(3))
    smooth = (F.interpolate(draw, (480, 640), mode="bicubic").clamp(0, 1) * 255).byte()[0].permute(1, 2, 0)
    image = Image.fromarray(smooth.numpy())
    vision = made(CLIP, SIGLIP)
    large = ImageRecipe(ImageRecipe.Config(size=56))(image)[None, None]
    own = ImageRecipe(ImageRecipe.Config(size=28, mean=[0.5] * 3, std=[0.5] * 3))(image)
    seen = vision._seen(large, 28, vision.entries[1])[0, 0]
    assert (seen - own).abs().mean() * 128 < 1


def config(folders: list[Path], llm: Path) -> dict[str, Any]:
    encoders = [{"name": "clip", "path": str(folders[0]), "keep_cls": False}]
    encoders.append({"name": "hf_vision", "path": str(folders[1]), "mean": [0.5] * 3, "std": [0.5] * 3})
    weights = [
        {"format": kind, "path": str(folder), "into": f"vision.encoders.{index}"}
        for index, (kind, folder) in enumerate(zip(("clip", "hf_vision"), folders, strict=True))
    ]
    return {
        "model": {
            "vision": {"name": "several", "encoders": encoders},
            "bridge": [{"name": "mlp"}],
            "fusion": {"name": "splice"},
            "llm": {"name": "hf", "path": str(llm)},
            "template": {"name": "plain"},
            "image": {"size": 56},
            "train": ["bridge.*"],
            "weights": [*weights, {"format": "hf_llm", "path": str(llm), "into": "llm"}],
        }
    }


def test_weight_files_of_each(tmp_path: Path, pixels: torch.Tensor) -> None:
    llm = Path(__file__).resolve().parents[1] / "golden" / "minigpt4" / "open" / "llm"
    theirs = [
        CLIPVisionModel(CLIPVisionConfig(**CLIP["config"])).eval(),
        SiglipVisionModel(
            SiglipVisionConfig(**{k: v for k, v in SIGLIP["config"].items() if k != "model_type"})
        ).eval(),
    ]
    folders = [tmp_path / "clip", tmp_path / "siglip"]
    for model, folder in zip(theirs, folders, strict=True):
        model.save_pretrained(folder)
    model = load_model(load_config(config(folders, llm)), device="cpu")
    with torch.no_grad():
        first, second = alone(model.vision, pixels)
        expected = theirs[0](pixels.flatten(0, 1)).last_hidden_state[:, 1:]
        torch.testing.assert_close(first.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)
    state = model.vision.encoders[1].model.state_dict()
    assert torch.equal(state["embeddings.patch_embedding.weight"], theirs[1].embeddings.patch_embedding.weight)
    assert second.shape == first.shape
    alike = Several(model.vision.written_out())
    assert "path" not in str(alike.config.encoders)
    alike.load_state_dict(model.vision.state_dict())
    torch.testing.assert_close(alike(pixels).tokens, model.vision(pixels).tokens)
    wrong = config(folders, llm)
    wrong["model"]["image"]["mean"] = [0.5] * 3
    with pytest.raises(ConfigError, match=r"model\.image\.mean.* but vision\.mean is"):
        load_config(wrong)


@pytest.mark.parametrize(
    ("encoders", "options", "text"),
    [
        ([CLIP], {}, "encoders has 1 entries, expected two or more"),
        (
            [CLIP, {**SIGLIP, "config": SIGLIP["config"] | {"patch_size": 14}}],
            {},
            "16, 4 tokens cannot be put side by side",
        ),
        ([CLIP, {**SIGLIP, "layer": [-1, -2]}], {"combine": "tokens"}, "tokens of widths 16, 32 cannot follow"),
        ([CLIP, {**CLIP, "keep_cls": True}], {"grid": 4}, "17 tokens are not a square"),
        ([CLIP, {**SIGLIP, "native": True}], {}, "see images of one size"),
        ([CLIP, {"name": "clipp"}], {}, "encoders.1.name.*clipp"),
        ([CLIP, {**SIGLIP, "keep_klass": True}], {}, "encoders.1.keep_klass"),
        ([CLIP, {**SIGLIP, "std": [0, 1, 1]}], {}, "encoders.1.std.* above 0"),
        ([CLIP, {**SIGLIP, "mean": 3}], {}, "encoders.1.mean"),
        ([CLIP, SIGLIP], {"mean": [0.5]}, "expected three of each"),
        ([CLIP, {**SIGLIP, "precision": "fp32"}], {}, "precision is an option of the whole"),
        ([CLIP, SIGLIP], {"width": 8}, "width goes with combine: tokens"),
        ([CLIP, SIGLIP], {"combine": "tokens", "grid": 8}, "grid goes with combine: channels"),
    ],
)
def test_unusable_options(encoders: list[dict[str, Any]], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        made(*encoders, **options)
