from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import resolve
from vlm.processors.image.decode import decode
from vlm.processors.image.recipe import CLIP_MEAN, CLIP_STD, ImageRecipe


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[:, :, 0] if mode == "L" else values, mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def recipe(size: int = 20, **options: object) -> ImageRecipe:
    return ImageRecipe(ImageRecipe.Config(size=size, **options))


@pytest.mark.parametrize("shape", [(20, 20), (7, 31), (64, 48), (301, 200), (1, 1)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_bit_equal_to_torchvision(shape: tuple[int, int], interpolation: str) -> None:
    image = noise(*shape)
    published = transforms.Compose(
        [
            transforms.Resize((20, 20), transforms.InterpolationMode(interpolation)),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    assert torch.equal(recipe(interpolation=interpolation)(image), published(image))


def test_every_kind_of_source_gives_the_same_tensor(tmp_path: Path) -> None:
    image = noise(33, 21)
    data = encoded(image, "PNG")
    (tmp_path / "p.png").write_bytes(data)
    wanted = recipe()(image)
    assert wanted.shape == (3, 20, 20)
    assert wanted.dtype == torch.float32
    for source in (data, bytearray(data), str(tmp_path / "p.png"), tmp_path / "p.png", np.asarray(image), wanted):
        assert torch.equal(recipe()(source), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(recipe()))(image), wanted)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = noise(20, 20, mode)
    assert np.array_equal(np.asarray(decode(image, background=None)), np.asarray(image.convert("RGB")))


def test_palette_with_transparency_and_grey_arrays() -> None:
    palette = noise(20, 20).quantize(16)
    data = encoded(palette, "PNG", transparency=3)
    assert np.array_equal(np.asarray(decode(data, background=None)), np.asarray(palette.convert("RGB")))
    grey = np.asarray(noise(9, 5, "L"))
    assert np.array_equal(np.asarray(decode(grey)), np.repeat(grey[:, :, None], 3, axis=2))


def test_sixteen_bit_images_keep_their_brightness() -> None:
    values = np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)
    got = np.asarray(decode(encoded(Image.fromarray(values), "PNG")))[:, :, 0]
    assert np.abs(got.astype(int) - np.round(values / 257.0).astype(int)).max() <= 1
    floats = Image.fromarray((values / 65535).astype(np.float32))
    assert np.array_equal(np.asarray(decode(floats))[:, :, 0], got)


def test_exif_rotation_is_applied() -> None:
    image = noise(30, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    turned = decode(encoded(image, "PNG", exif=exif))
    assert np.array_equal(np.asarray(turned), np.asarray(image.rotate(-90, expand=True)))


def test_truncated_corrupt_empty_missing_unsupported(tmp_path: Path) -> None:
    jpeg, png = encoded(noise(64, 64), "JPEG"), encoded(noise(64, 64), "PNG")
    broken = {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated.png": (png[: len(png) // 2], "corrupt or truncated"),
        "stub.png": (png[:30], r"corrupt or truncated \(its header is damaged\)"),
        "garbled.png": (png[:60] + b"\x00" * 40 + png[100:], "corrupt"),
        "text.jpg": (b"<html>not found</html>", "not an image format"),
        "empty.jpg": (b"", "empty"),
    }
    for name, (data, words) in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=words) as caught:
            recipe()(tmp_path / name)
        assert name in str(caught.value)
        with pytest.raises(DataError, match="coco/17"):
            recipe()(data, name="coco/17")
    with pytest.raises(DataError, match=r"nowhere\.jpg: no such file"):
        recipe()("nowhere.jpg")
    with pytest.raises(DataError, match="cannot be read"):
        recipe()(tmp_path)


def test_too_many_pixels() -> None:
    data = encoded(Image.new("L", (300, 200)), "PNG")
    with pytest.raises(DataError, match="300 x 200 pixels, allowed are 1 to 59999"):
        recipe(max_pixels=59_999)(data, name="bomb.png")
    assert recipe(max_pixels=60_000)(data).shape == (3, 20, 20)


def test_a_real_decompression_bomb_is_refused_before_decoding() -> None:
    data = encoded(Image.new("1", (20_000, 10_000)), "PNG")
    with pytest.raises(DataError, match=r"bomb\.png: \d+ pixels, allowed are 1 to .*\n  fix: .* bomb"):
        recipe()(data, name="bomb.png")


def test_formats_that_only_opencv_reads() -> None:
    """Radiance HDR, which PIL does not know."""
    import cv2

    ok, data = cv2.imencode(".hdr", np.full((4, 4, 3), 0.5, np.float32))
    assert ok
    assert recipe(4)(data.tobytes()).shape == (3, 4, 4)


@pytest.mark.parametrize("source", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 5), np.uint8), 3, None])
def test_what_is_no_image(source: object) -> None:
    with pytest.raises(DataError, match="thing"):
        recipe()(source, name="thing")


def test_prepared_tensors_must_fit() -> None:
    with pytest.raises(DataError, match=r"wanted float \(3, 20, 20\)"):
        recipe()(torch.zeros(3, 21, 20))


@pytest.mark.parametrize("options", [{"size": 0}, {"mean": [0.5]}, {"std": [1, 1, 0]}])
def test_impossible_recipes(options: dict) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        ImageRecipe(ImageRecipe.Config(**options))


def test_published_names() -> None:
    image = noise(50, 40)
    for name in ("blip2_image_train", "blip2_image_eval"):
        kind = resolve("processor", name)
        assert torch.equal(kind(kind.Config(size=20))(image), recipe()(image))


def test_a_tuple_is_shown_side_by_side_with_every_second_column() -> None:
    left, right = (np.random.default_rng(k).integers(0, 256, (9, 7, 3), np.uint8) for k in range(2))
    recipe = ImageRecipe(ImageRecipe.Config(size=8))
    wide = torch.cat([recipe(left), recipe(right)], dim=2)
    assert torch.equal(recipe((left, right)), wide[:, :, ::2])
