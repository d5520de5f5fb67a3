"""Vision towers over flat patches: images of any size, videos, and images at their own size."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch.testing import assert_close

from vlm.common.errors import ConfigError, DataError
from vlm.common.types import Example, MediumShape
from vlm.models.bridges.patch_merger import PatchMerger
from vlm.models.lora import LoraOptions
from vlm.models.vision.flat import FlatVision
from vlm.models.vlm import VLM
from vlm.processors.collate import VisualTokens, collate
from vlm.processors.image.native import NativeRecipe, fitted
from vlm.testing import tiny_model

SIZES = {
    "model_type": "qwen2_vl_vision",
    "depth": 2,
    "embed_dim": 16,
    "hidden_size": 32,
    "num_heads": 2,
    "patch_size": 4,
}


def tower(**options: Any) -> FlatVision:
    torch.manual_seed(0)
    return FlatVision(FlatVision.Config(config=dict(SIZES), **options)).eval()


def whole(vision: FlatVision) -> VLM:
    base = tiny_model()
    model = VLM(vision, [PatchMerger(PatchMerger.Config(), 16, 32)], base.llm).eval()
    model.fusion = base.fusion
    return model


def theirs(vision: FlatVision, pixels: torch.Tensor) -> torch.Tensor:
    """Tokens of one medium ``[f, 3, h, w]`` by the video processor's patches, in transformers' order."""
    from transformers import Qwen2VLVideoProcessor

    processor = Qwen2VLVideoProcessor(
        patch_size=4, do_resize=False, do_rescale=False, do_normalize=False, do_sample_frames=False
    )
    found = processor(videos=[pixels], return_tensors="pt")
    states = vision.model(found["pixel_values_videos"], grid_thw=found["video_grid_thw"]).last_hidden_state
    frames, rows, columns = found["video_grid_thw"][0].tolist()
    squares = states.view(frames, rows // 2, columns // 2, 2, 2, -1)
    return squares.transpose(2, 3).reshape(frames, rows * columns, -1)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 8, 16), (4, 16, 8), (3, 8, 8)])
def test_videos_are_read_as_by_transformers(shape: tuple[int, int, int]) -> None:
    vision = tower()
    pixels = torch.randn(shape[0], 3, *shape[1:])
    found = vision(pixels[None])
    assert found.grid is not None
    assert found.grid.tolist() == [[shape[1] // 4, shape[2] // 4]]
    even = torch.cat([pixels, pixels[-1:]]) if shape[0] % 2 else pixels
    assert_close(found.tokens[0], theirs(vision, even), rtol=0, atol=1e-5)


@torch.no_grad()
def test_media_of_a_batch_are_those_alone_and_counted() -> None:
    model = whole(tower())
    media = [torch.randn(f, 3, h, w) for f, h, w in ((1, 8, 16), (3, 16, 8), (1, 16, 16), (1, 8, 16))]
    batch = collate([Example([-200] * 4 + [5], [-100] * 4 + [5], media, sizes=[(1, 1)] * 4)], 0)
    found = model.encode(batch.pixels, batch.frames, batch.about)
    assert found.mask is not None
    counts = VisualTokens.of(model.visual_tokens, model.counters())
    for place, medium in enumerate(media):
        alone = model.encode(medium[None]).tokens[0].flatten(0, 1)
        assert_close(found.tokens[place][found.mask[place]], alone, rtol=1e-5, atol=1e-5)
        assert counts.positions(MediumShape(*medium.shape[:1], *medium.shape[2:])) == len(alone)


def test_adapters_get_gradients_and_recomputation_changes_nothing() -> None:
    pixels = torch.randn(1, 1, 3, 8, 8)
    plain, again = tower(), tower(checkpointing=True)
    again.load_state_dict(plain.state_dict())
    assert torch.equal(plain(pixels).tokens, again(pixels).tokens)
    lora = tower(lora=LoraOptions(r=2, targets=["qkv"]))
    lora(pixels).tokens.sum().backward()
    grads = [p.grad for n, p in lora.named_parameters() if "lora_B" in n]
    assert len(grads) == 2 and all(g is not None and g.abs().sum() > 0 for g in grads)


def test_what_cannot_be_built() -> None:
    for config, text in (
        ({"model_type": "clip_vision_model"}, "clip_vision_model is not a vision tower .* not built like"),
        ({"model_type": "qwen2_5_vl_vision"}, "not built like"),
    ):
        with pytest.raises(ConfigError, match=text):
            FlatVision(FlatVision.Config(config=config))
    with pytest.raises(ConfigError, match="in multiples of 8"):
        tower()(torch.zeros(1, 1, 3, 12, 8))


@pytest.mark.parametrize("size", [(28, 28), (300, 200), (11, 900), (1000, 37), (5, 5), (640, 480), (57, 57)])
def test_sizes_and_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers import Qwen2VLImageProcessorPil

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    limits = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 40}
    found = Qwen2VLImageProcessorPil(size=limits)(images=PILImage.fromarray(image), return_tensors="pt")
    ours = NativeRecipe(NativeRecipe.Config(most=28 * 28 * 40))(image)
    assert ours.size == size
    assert [side // 14 for side in ours.pixels.shape[-2:]] == found["image_grid_thw"][0, 1:].tolist()
    patches = tower_patches(ours.pixels)
    assert_close(patches, found["pixel_values"], rtol=0, atol=1e-6)


def tower_patches(pixels: torch.Tensor) -> torch.Tensor:
    vision = FlatVision(FlatVision.Config(config={**SIZES, "patch_size": 14}))
    return vision._patches(pixels[None].expand(-1, 2, -1, -1, -1))


def test_images_that_cannot_be_scaled() -> None:
    with pytest.raises(DataError, match="sides differ by more than 200 times"):
        NativeRecipe(NativeRecipe.Config())(np.zeros((1, 201, 3), np.uint8))
    data = io.BytesIO()
    PILImage.new("RGB", (30, 30)).save(data, "PNG")
    with pytest.raises(DataError, match="image of a test"):
        NativeRecipe(NativeRecipe.Config())(data.getvalue()[:50], "of a test")
    with pytest.raises(ConfigError, match="100 pixels in multiples of 28"):
        NativeRecipe.Config(most=100)


def test_levels_pass_through_unchanged() -> None:
    recipe, image = (
        NativeRecipe(NativeRecipe.Config()),
        np.random.default_rng(1).integers(0, 256, (90, 60, 3), np.uint8),
    )
    levels = recipe.as_uint8()(image)
    assert torch.equal(recipe.normalize(levels.pixels), recipe(image).pixels)
    assert recipe(levels) is levels
    assert fitted(90, 60, 28, 3136, 10**6) == (84, 56)
