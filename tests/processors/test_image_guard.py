"""Files that would cost unbounded time or memory are refused, or read without what costs it."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm.common.errors import DataError
from vlm.processors.image import guard
from vlm.processors.image.decode import decode
from vlm.processors.image.recipe import ImageRecipe

from .image_bytes import chunk, encoded

RED = (200, 10, 20)


def recipe(**options: Any) -> ImageRecipe:
    return ImageRecipe(ImageRecipe.Config(size=8, **options))


PNG = encoded(Image.new("RGB", (8, 8), RED), "PNG")
HEAD, REST = PNG[:33], PNG[33:]
LARGE = zlib.compress(b"\0" * (8 << 20))


@pytest.mark.parametrize("way", ["exact", "fast"])
def test_a_jpeg_of_many_scans(way: str) -> None:
    data = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    assert recipe(decode=way)(data[:-2] + last * 50 + data[-2:]).shape == (3, 8, 8)
    with pytest.raises(DataError, match=r"x\.jpg: a JPEG of 10,006 scans, allowed are 100"):
        recipe(decode=way)(data[:-2] + last * 10_000 + data[-2:], "x.jpg")


def test_scans_of_a_thumbnail_and_of_a_second_image_do_not_count() -> None:
    data = encoded(Image.new("L", (16, 16), 77), "JPEG")
    thumbnail = b"\xff\xda\0\2" * 300
    segment = b"\xff\xe3" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert decode(data[:2] + segment + data[2:] + data * 200).getpixel((3, 3)) == (77, 77, 77)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + LARGE),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + LARGE),
        chunk(b"iCCP", b"profile\0\0" + LARGE),
        chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000),
        chunk(b"fcTL", b"\0" * 26) * 1000,
    ],
)
@pytest.mark.parametrize("place", [33, len(PNG) - 12])
def test_a_png_with_large_texts_is_read(extra: bytes, place: int) -> None:
    assert decode(PNG[:place] + extra + PNG[place:]).getpixel((3, 3)) == RED


def test_an_orientation_in_a_text_is_kept() -> None:
    image = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(10, 20, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    raw = b"\nexif\n%8d\n" % len(block) + block.hex().encode()
    data = encoded(image, "PNG")
    turned = decode(data[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)) + data[33:])
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


def test_a_png_of_endless_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_CHUNKS", 1000)
    with pytest.raises(DataError, match="more than 1,000 chunks"):
        decode(HEAD + chunk(b"teSt", b"") * 1001 + REST)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_tags_that_claim_far_more_than_there_is(order: str) -> None:
    entries = b"".join(struct.pack(f"{order}HHII", 1000 + k, 7, 60_000, 8) for k in range(4000))
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, 4000) + entries + b"\0" * 12_000
    jpeg = encoded(Image.new("RGB", (8, 8), RED), "JPEG")
    body = b"Exif\0\0" + block
    for data in (
        jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:],
        HEAD + chunk(b"eXIf", block) + REST,
    ):
        with pytest.raises(DataError, match=r"photo: its tags claim \d+,\d+,\d+ bytes of a file"):
            decode(data, name="photo")


def tiff(*tags: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", 8) + body + data


GREY = ((258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (((322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 200), (325, 4, 1, 9)), "tiles of 40000 x 40000"),
        (((273, 4, 1, 180), (278, 4, 1, 0xFFFFFFFF), (279, 4, 1, 50)), "corrupt or truncated"),
        (((273, 4, 1, 180), (278, 4, 1, 0), (279, 4, 1, 50)), "corrupt or truncated"),
    ],
)
def test_a_tiff_with_odd_tiles_and_strips(tags: tuple[Any, ...], words: str) -> None:
    data = tiff((256, 4, 1, 10), (257, 4, 1, 10), *GREY, *tags, data=zlib.compress(b"\0" * 1000))
    with pytest.raises(DataError, match=words):
        decode(data)


def test_sides_are_limited_whatever_the_area() -> None:
    data = HEAD[:16] + struct.pack(">II", 88_000_000, 1) + HEAD[24:29]
    data += struct.pack(">I", zlib.crc32(data[12:29])) + REST
    for options in ({}, {"resize": "pad"}, {"decode": "fast"}):
        with pytest.raises(DataError, match="88000000 x 1 pixels, allowed are"):
            recipe(**options)(data)
    wide = encoded(Image.new("L", (30_000, 2)), "PNG")
    assert recipe()(wide).shape == (3, 8, 8)
    with pytest.raises(DataError, match="too long and thin"):
        recipe(resize="pad")(wide)


def test_animations_cost_one_frame() -> None:
    gif = encoded(Image.new("P", (2, 2)), "GIF")
    start = gif.index(b",")
    assert decode(gif[:start] + gif[start:-1] * 100_000 + b";").size == (2, 2)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "an EPS drawing"),
        (b"8BPS\0\1" + b"\0" * 40, "a Photoshop file"),
        (encoded(Image.new("RGBA", (16, 16)), "ICO"), r"an icon \(ICO\)"),
        (b"icns\0\0\0\x10" + b"\0" * 20, r"an icon \(ICNS\)"),
        (encoded(Image.new("RGBA", (8, 8)), "DDS"), "a DDS texture"),
        (b'<?xml version="1.0"?>\n<svg width="9"/>', "an SVG drawing"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "a file of type 'heic'"),
        (b"secret words", "of an unknown kind"),
    ],
)
def test_other_kinds_of_files_are_named_and_never_quoted(data: bytes, kind: str) -> None:
    with pytest.raises(DataError, match=f"x: not an image format that can be read: {kind}") as caught:
        decode(data, name="x")
    assert "secret" not in str(caught.value)


def test_a_pnm_written_as_text_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"P2 20 10 255\n" + b"7 " * 200
    assert decode(data).size == (20, 10)
    monkeypatch.setattr(guard, "MAX_PLAIN", 100)
    with pytest.raises(DataError, match="a PNM of 413 bytes written as text, allowed are 100"):
        decode(data)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "fifo.json").symlink_to(tmp_path / "fifo.png")
    for path in (tmp_path / "fifo.png", tmp_path / "fifo.json", Path("/dev/zero")):
        with pytest.raises(DataError, match="is not a regular file"):
            decode(path)
    with pytest.raises(DataError, match="is a folder"):
        decode(tmp_path)
    for name in ("a\0b.png", "a\ud800.png", "a" * 300):
        with pytest.raises(DataError, match="cannot be read|no such file") as caught:
            decode(name)
        str(caught.value).encode()


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "TIFF", "GIF", "PNG", "JPEG", "BMP", "JPEG2000"])
def test_damage_of_any_kind_is_a_data_error(kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    data = encoded(image, kind)
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 200), 3):
            damaged[place] = rng.choice([0, 127, 255])
        try:
            assert recipe()(bytes(damaged)).isfinite().all()
        except DataError as error:
            assert str(error).startswith("image bytes: ")


def test_greys_of_sixteen_bits_have_one_rule() -> None:
    values = np.array([[0, 200, 257, 65535]], np.uint16)
    dark = decode(encoded(Image.fromarray(values[:, :3]), "PNG"))
    whole = decode(encoded(Image.fromarray(values), "PNG"))
    assert [dark.getpixel((k, 0))[0] for k in range(3)] == [0, 1, 1] == [whole.getpixel((k, 0))[0] for k in range(3)]
    assert whole.getpixel((3, 0)) == (255, 255, 255)
    with pytest.raises(DataError, match="floats from 0 to 200, expected 0 to 1"):
        decode(Image.fromarray(np.array([[0, 200]], np.float32)))
