"""Recipes of the published systems against their goldens, torchvision and transformers; the training part."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms
from torchvision.transforms import functional

from vlm.common.errors import ConfigError, DataError
from vlm.processors.image.decode import decode
from vlm.processors.image.geometry import centre, plan_crop
from vlm.processors.image.recipe import CLIP_MEAN, CLIP_STD, ImageRecipe

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES = [(20, 20), (7, 31), (64, 48), (301, 200), (97, 131), (131, 97), (1, 1), (23, 20), (20, 25)]


def recipe(size: int = 20, **options: object) -> ImageRecipe:
    return ImageRecipe(ImageRecipe.Config(size=size, **options))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tensors(system: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / system / "open" / "tensors.safetensors")


def test_visualcla() -> None:
    want = tensors("visualcla")["preprocess.pixel_values"][0]
    made = recipe(want.shape[-1], resize="shorter", crop_rounding="floor")
    assert torch.equal(made(GOLDEN / "visualcla" / "open" / "image.png"), want)


def test_mmgpt() -> None:
    want, images = tensors("mmgpt")["preprocess.tiny"], GOLDEN / "mmgpt" / "open" / "images"
    assert torch.equal(recipe(want.shape[-1], resize="shorter")(images / "gradient_97x131.png"), want)
    full, levels = recipe(224, resize="shorter"), decode(images / "gradient_224_after_resize_and_crop.png")
    assert torch.equal(full(images / "gradient_97x131.png"), full(levels))


def test_lynx() -> None:
    want, image = tensors("lynx"), GOLDEN / "lynx" / "open" / "preproc_97x131.png"
    tiny = want["preproc/tiny"]
    assert torch.equal(recipe(tiny.shape[-1], resize="shorter")(image), tiny)
    full = recipe(420, resize="shorter")(image)
    for start in (0, 200, 404):
        patch = full[:, start : start + 16, start : start + 16]
        assert torch.equal(patch, want[f"preproc/full420_patch_{start}_16"])


@pytest.mark.parametrize("shape", SHAPES)
def test_shorter_side_is_torchvisions(shape: tuple[int, int]) -> None:
    published = transforms.Compose(
        [
            transforms.Resize(20, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(20),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    image = noise(*shape)
    assert torch.equal(recipe(resize="shorter")(image), published(image))


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != (1, 1)])
def test_shorter_side_is_transformers(shape: tuple[int, int]) -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20})
    image = noise(*shape)
    want = torch.as_tensor(np.asarray(processor(image)["pixel_values"][0]))
    got = recipe(resize="shorter", crop_rounding="floor")(image)
    assert torch.allclose(got, want, rtol=0, atol=3e-7)  # transformers scales by 1/255 before it rounds to float32


@pytest.mark.parametrize("side", [20, 21])
def test_the_two_rules_for_odd_margins_differ(side: int) -> None:
    plans = [(centre((side, long), side, "round"), centre((side, long), side, "floor")) for long in range(side, 90)]
    margins = [(a.corner[1], b.corner[1]) for a, b in plans if a.corner and b.corner]
    assert all(0 <= a - b <= 1 for a, b in margins)
    assert {a - b for a, b in margins} == {0, 1}


def test_padding_keeps_the_whole_image() -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    got = recipe(40, resize="pad", pad_color=(0, 0, 255), mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert got[0, 10:30].eq(1).all()
    assert got[2, :10].eq(1).all()
    assert got[2, 30:].eq(1).all()
    assert got[:, :10, 0].sum() == 10
    mean = recipe(40, resize="pad")(image)
    assert mean[:, 0].abs().max() < 0.02  # the default border is the mean colour


def test_too_thin_for_the_shorter_side() -> None:
    with pytest.raises(DataError, match=r"strip: 1 x 3000 pixels, too long and thin"):
        recipe(200, resize="shorter", max_pixels=100_000)(Image.new("RGB", (1, 3000)), name="strip")


TRAIN = {"scale": (0.3, 0.6), "ratio": (0.75, 4 / 3), "flip": 0.5}


@pytest.mark.parametrize("seed", range(6))
def test_training_crop_is_torchvisions_resized_crop(seed: int) -> None:
    made, image = recipe(train=ImageRecipe.Train(**TRAIN)), noise(64, 48)
    plan = made._plan(image.size, random.Random(seed))
    assert plan.box is not None
    left, top, right, bottom = plan.box
    crop = functional.resized_crop(
        image, top, left, bottom - top, right - left, [20, 20], transforms.InterpolationMode.BICUBIC
    )
    crop = functional.hflip(crop) if plan.flip else crop
    want = functional.normalize(functional.to_tensor(crop), CLIP_MEAN, CLIP_STD)
    assert torch.equal(made(image, rng=random.Random(seed)), want)


def test_crops_stay_within_scale_and_ratio_and_spread() -> None:
    rng = random.Random(0)
    boxes = [plan_crop((640, 480), (0.3, 0.6), (0.75, 4 / 3), rng) for _ in range(400)]
    shares = [(r - x) * (b - y) / (640 * 480) for x, y, r, b in boxes]
    shapes = [(r - x) / (b - y) for x, y, r, b in boxes]
    assert 0.295 < min(shares) < 0.33
    assert 0.57 < max(shares) < 0.605
    assert 0.74 < min(shapes) < 0.78
    assert 1.29 < max(shapes) < 1.35
    assert abs(sum(map(math.log, shapes))) / 400 < 0.03
    assert min(x for x, *_ in boxes) == 0
    assert all(0 <= x < r <= 640 and 0 <= y < b <= 480 for x, y, r, b in boxes)


@pytest.mark.parametrize(
    ("size", "box"), [((10, 1000), (0, 493, 10, 506)), ((1000, 10), (493, 0, 506, 10)), ((1, 1), (0, 0, 1, 1))]
)
def test_a_image_that_no_crop_fits(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert plan_crop(size, (0.9, 1.0), (0.75, 4 / 3), random.Random(0)) == box


def test_training_draws_from_the_generator_alone() -> None:
    made, image = recipe(train=ImageRecipe.Train(**TRAIN)), noise(64, 48)
    one, two, other = (made(image, rng=random.Random(s)) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(made(image), recipe()(image))
    assert torch.equal(recipe()(image, rng=random.Random(1)), recipe()(image))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.5, 1.2)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"flip": 1.5}, "flip is 1.5"),
    ],
)
def test_impossible_training_parts(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ImageRecipe.Train(**options)


@pytest.mark.parametrize("color", [(1, 2), (0, 0, 256), (-1, 0, 0)])
def test_impossible_border(color: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="is not a colour"):
        recipe(pad_color=color)


def test_a_stored_composition_reads_back() -> None:
    config = ImageRecipe.Config(train={"scale": [0.9, 1.0], "flip": 0.0})  # type: ignore[arg-type]
    assert config.train == ImageRecipe.Train(scale=(0.9, 1.0))


def test_levels_are_normalised_to_the_same_bits() -> None:
    """Every level in every channel, by the published formula: level / 255, minus the mean, over the deviation."""
    image = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), (1, 1, 3))
    made = recipe(16)
    want = transforms.Normalize(CLIP_MEAN, CLIP_STD)(transforms.ToTensor()(image))
    levels = made.as_uint8()(image)
    assert levels.dtype == torch.uint8
    assert torch.equal(made.normalize(levels), want)
    assert torch.equal(made.normalize(levels.expand(2, 3, 3, 16, 16))[1, 2], want)
    assert torch.equal(made(image), want)
    assert made.normalize(want) is want
