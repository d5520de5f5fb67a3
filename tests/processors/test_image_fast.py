"""``decode: fast`` stays close to ``exact`` and refuses the same files; media that are damaged or unusual."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.common.errors import DataError
from vlm.processors.image.decode import Opened, decode, from_base64
from vlm.processors.image.recipe import ImageRecipe

PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with a little grain."""
    rng = np.random.default_rng(seed)
    base = Image.fromarray(rng.integers(40, 216, (4, 5, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    grain = rng.normal(0, 2, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(base) + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pair(size: int = 64, **options: object) -> tuple[ImageRecipe, ImageRecipe]:
    return tuple(ImageRecipe(ImageRecipe.Config(size=size, decode=d, **PLAIN, **options)) for d in ("exact", "fast"))  # type: ignore[return-value]


def levels(one: torch.Tensor, two: torch.Tensor) -> float:
    assert one.shape == two.shape
    return float((one - two).abs().mean()) * 255


@pytest.mark.parametrize("resize", ["stretch", "shorter", "pad"])
@pytest.mark.parametrize("size", [(80, 60), (128, 128), (333, 250), (640, 480), (301, 700)])
def test_close_to_exact(resize: str, size: tuple[int, int]) -> None:
    exact, fast = pair(resize=resize)
    data = encoded(photo(*size), quality=92)
    assert levels(exact(data), fast(data)) < (3.5 if resize == "pad" else 1.5)  # the border falls on whole pixels


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_without_reduction_a_level_at_most(interpolation: str) -> None:
    exact, fast = pair(interpolation=interpolation)
    data = encoded(photo(60, 50), "PNG")
    assert (exact(data) - fast(data)).abs().max() * 255 < 1.01


@pytest.mark.parametrize("interpolation", ["lanczos", "nearest"])
def test_other_interpolations_go_through_pil(interpolation: str) -> None:
    exact, fast = pair(interpolation=interpolation)
    data = encoded(photo(60, 50), "PNG")
    assert torch.equal(exact(data), fast(data))


def test_same_crop_and_flip_in_training() -> None:
    exact, fast = pair(train=ImageRecipe.Train(scale=(0.3, 0.5), flip=0.5))
    data = encoded(photo(400, 300), quality=92)
    for seed in range(5):
        assert levels(exact(data, rng=random.Random(seed)), fast(data, rng=random.Random(seed))) < 3


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_colour_modes_and_exif(mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(200, 100).convert(mode), exif=exif, quality=92)
    exact, fast = pair(resize="shorter")
    assert levels(exact(data), fast(data)) < 2
    assert Opened(data, "", 10**6).size == ((100, 200) if orientation > 4 else (200, 100))


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_reduced_sizes(factor: int) -> None:
    image = photo(321, 200)
    got = Opened(encoded(image), "", 10**6).reduced(factor)
    assert got.shape == (-(-200 // factor), -(-321 // factor), 3)
    other = np.asarray(image.resize((got.shape[1], got.shape[0]), Image.BOX), dtype=float)
    assert np.abs(got - other).mean() < 3
    assert Opened(encoded(image, "PNG"), "", 10**6).reduced(factor).shape == (200, 321, 3)


@pytest.mark.parametrize("kind", ["exact", "fast"])
def test_damaged_files_are_refused(kind: str, tmp_path: Path) -> None:
    recipe = pair()[kind == "fast"]
    jpeg = encoded(photo(640, 480))
    cases = {
        "half.jpg": (jpeg[: len(jpeg) // 2], r"half\.jpg: corrupt or truncated"),
        "head.jpg": (jpeg[:300], r"head\.jpg: corrupt or truncated"),
        "zero.jpg": (b"", r"zero\.jpg: empty"),
        "page.jpg": (b"<!DOCTYPE html><html>", r"page\.jpg: not an image format.*: an HTML page"),
        "bomb.jpg": (encoded(Image.new("L", (9000, 9900))), r"bomb\.jpg: 9000 x 9900 pixels, allowed are 1 to"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=words):
            recipe(tmp_path / name)
    with pytest.raises(DataError, match=r"gone\.jpg: no such file"):
        recipe(tmp_path / "gone.jpg")


def test_garbage_after_the_end_mark_is_harmless() -> None:
    data = encoded(photo(200, 100), quality=92)
    exact, fast = pair()
    for tail in (b"\x00" * 20, b"\x00" * 500):
        assert levels(exact(data), fast(data + tail)) < 2


def test_a_broken_exif_block_does_not_hide_the_size() -> None:
    data = encoded(photo(60, 40), exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff")
    assert Opened(data, "", 10**6).size == (60, 40)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    got = np.asarray(decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)))
    assert (got == np.array([255, 0, 0])).all()


def test_base64_images(tmp_path: Path) -> None:
    image = photo(30, 20)
    text = base64.b64encode(encoded(image, "PNG")).decode()
    assert from_base64(text, "x") == from_base64("data:image/png;base64," + text, "x") == encoded(image, "PNG")
    (tmp_path / "one.json").write_text(json.dumps(text))
    assert np.array_equal(np.asarray(decode(tmp_path / "one.json")), np.asarray(image))
    cases = {
        "bad.json": ('"no base64!"', "not base64"),
        "list.json": (json.dumps([text, text]), "holds 2 frames, expected one"),
        "dict.json": ("{}", "holds a dict"),
        "text.json": ("{", "not JSON"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=words) as caught:
            decode(tmp_path / name)
        assert name in str(caught.value)
