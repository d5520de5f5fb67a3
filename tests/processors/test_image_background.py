"""What lies under transparent pixels, for every way in which a file can have them."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm.common.errors import ConfigError
from vlm.config.load import load_config
from vlm.processors.image.decode import decode
from vlm.processors.image.recipe import ImageRecipe

from .image_bytes import chunk, encoded

RED, CLEAR, HALF = (200, 10, 20, 255), (250, 240, 0, 0), (100, 100, 100, 128)
RGBA = Image.new("RGBA", (3, 1))
for place, colour in enumerate((RED, CLEAR, HALF)):
    RGBA.putpixel((place, 0), colour)


def png(depth: int, colour_type: int, row: bytes, width: int, extra: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def pixels(source: Any, **options: Any) -> list[tuple[int, ...]]:
    image = decode(source, **options)
    return [image.getpixel((k, 0)) for k in range(image.width)]


WHITE = (255, 255, 255)
DEEP = struct.pack(">8H", 200 * 257, 10 * 257, 20 * 257, 65535, 250 * 257, 0, 0, 0)
GIF = Image.new("P", (2, 1))
GIF.putpalette([200, 10, 20, 250, 240, 0])
GIF.putpixel((1, 0), 1)
CASES = {
    "RGBA": RGBA.crop((0, 0, 2, 1)),
    "RGBA array": np.array([[RED, CLEAR]], np.uint8),
    "RGBA png": encoded(RGBA.crop((0, 0, 2, 1)), "PNG"),
    "RGBA webp": encoded(RGBA.crop((0, 0, 2, 1)), "WEBP", lossless=True, exact=True),
    "RGBA tiff": encoded(RGBA.crop((0, 0, 2, 1)), "TIFF"),
    "16-bit RGBA": png(16, 6, DEEP, 2),
    "palette with tRNS": png(
        8, 3, b"\0\1", 2, chunk(b"PLTE", bytes([200, 10, 20, 250, 240, 0])) + chunk(b"tRNS", b"\xff\0")
    ),
    "colour key": png(8, 2, bytes([200, 10, 20, 250, 240, 0]), 2, chunk(b"tRNS", struct.pack(">3H", 250, 240, 0))),
    "16-bit colour key": png(16, 2, DEEP[:6] + DEEP[8:14], 2, chunk(b"tRNS", DEEP[8:14])),
    "gif": encoded(GIF, "GIF", transparency=1),
    "premultiplied": RGBA.crop((0, 0, 2, 1)).convert("RGBa"),
}


@pytest.mark.parametrize("case", CASES)
def test_colours(case: str) -> None:
    assert pixels(CASES[case]) == [RED[:3], WHITE]
    assert pixels(CASES[case], background=(1, 2, 3)) == [RED[:3], (1, 2, 3)]
    kept = pixels(CASES[case], background=None)
    assert kept[0] == RED[:3] and kept[1] != WHITE


GREYS = {
    "LA": Image.merge("LA", (Image.frombytes("L", (2, 1), b"\x64\x09"), Image.frombytes("L", (2, 1), b"\xff\0"))),
    "16-bit LA": png(16, 4, struct.pack(">4H", 100 * 257, 65535, 9 * 257, 0), 2),
    "grey key": png(8, 0, b"\x64\x09", 2, chunk(b"tRNS", struct.pack(">H", 9))),
    "16-bit grey key": png(16, 0, struct.pack(">2H", 100 * 257, 9), 2, chunk(b"tRNS", struct.pack(">H", 9))),
}


@pytest.mark.parametrize("case", GREYS)
def test_greys(case: str) -> None:
    assert pixels(GREYS[case]) == [(100, 100, 100), WHITE]
    assert pixels(GREYS[case], background=(0, 0, 0))[1] == (0, 0, 0)


def test_half_transparent_pixels_are_mixed() -> None:
    assert pixels(RGBA)[2] == (177, 177, 177)
    assert pixels(RGBA, background=(0, 0, 0))[2] == (50, 50, 50)
    assert pixels(RGBA, background=None)[2] == (100, 100, 100)


def test_recipes_count_and_fill() -> None:
    def shown(background: Any) -> float:
        recipe = ImageRecipe(ImageRecipe.Config(size=1, mean=(0.5,) * 3, std=(1,) * 3, background=background))
        value = float(recipe(Image.new("RGBA", (2, 2), CLEAR))[2, 0, 0])
        recipe(Image.new("RGB", (2, 2))), recipe(Image.new("RGBA", (2, 2), RED))
        assert recipe.transparent == 1 and recipe.decoded == 12
        return value

    assert [round(shown(b), 2) for b in ("white", "black", "mean", [0, 0, 51], "keep")] == [0.5, -0.5, -0.0, -0.3, -0.5]


@pytest.mark.parametrize("background", ["green", [1, 2], [0, 0, 256], [0.5, 0, 0], 7])
def test_what_is_not_a_colour(background: Any) -> None:
    with pytest.raises(ConfigError, match=r"background .* is not a colour"):
        ImageRecipe(ImageRecipe.Config(background=background))


def test_published_systems_drop_the_alpha_and_own_compositions_do_not() -> None:
    published: dict[str, Any] = {"model": {"arch": "minigpt4", "model_type": "pretrain_vicuna0", "llama_model": "x"}}
    assert load_config(published, check="none").model.image.config.background == "keep"
    changed = load_config(published, ["model.image.background=[1,2,3]"], check="none")
    assert list(changed.model.image.config.background) == [1, 2, 3]
    assert ImageRecipe.Config().background == "white"
