"""The files of a feature cache, and what a processor finds in it: cheap, without a model."""

from __future__ import annotations

import base64
import errno
import json
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.processors.image_bytes import encoded
from vlm.common.errors import ConfigError
from vlm.common.types import MEDIA_TOKEN, Example, Features, Prepared, Split, StoredMedium
from vlm.processors.collate import collate
from vlm.processors.features import folder as folders
from vlm.processors.features import store
from vlm.processors.features.entry import Entry, pack
from vlm.processors.features.index import LINE, Index, line
from vlm.processors.features.media import MediaCache, image_recipe, layout_of, video_recipe
from vlm.processors.features.store import Reader, Writer
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.image.split import SplitRecipe
from vlm.processors.video.recipe import VideoRecipe

RECIPE = b"recipe_1"


def encoded_image(shade: int = 0) -> bytes:
    """A PNG of 12 x 16 pixels."""
    return encoded(Image.new("RGB", (12, 16), (shade, 90, 200)), "PNG")


def entry(seed: int = 0, masked: bool = False, dtype: torch.dtype = torch.float32) -> Entry:
    tokens = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    mask = torch.arange(6).view(1, 2, 3) != 5 if masked else None
    grid = torch.tensor([[1, 3]]) if masked else None
    return Entry(Features(tokens, mask, grid), torch.float32, (2, 8, 6), (16, 12) if masked else None, 192)


def key(number: int) -> bytes:
    return number.to_bytes(4, "big") * 6


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return folders.make_folder(tmp_path / "cache", "0" * 32, {"parts": []}, {RECIPE.hex(): {}})


def write(place: Path, numbers: range | list[int], most: float = 1e9) -> Writer:
    writer = Writer(place, most)
    for number in numbers:
        writer.write(key(number), RECIPE, pack(entry(number)))
    writer.close()
    return writer


def reader_of(place: Path) -> Reader:
    index = Index(place)
    index.refresh()
    return Reader(index)


def found(reader: Reader, number: int) -> bool:
    value, _ = reader.features(key(number))
    assert value is None or torch.equal(value.features.tokens, entry(number).features.tokens)
    return value is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_an_entry_comes_back_as_it_was(place: Path, dtype: torch.dtype, masked: bool) -> None:
    own = entry(5, masked, dtype)
    writer = Writer(place, 1e9)
    assert writer.write(key(5), RECIPE, pack(own))
    value, damaged = reader_of(place).features(key(5))
    assert value is not None and not damaged
    assert torch.equal(value.features.tokens, own.features.tokens) and value.features.tokens.dtype is dtype
    assert (value.dtype, value.shape, value.size, value.decoded) == (own.dtype, own.shape, own.size, own.decoded)
    if masked:
        assert torch.equal(value.features.mask, own.features.mask)
        assert torch.equal(value.features.grid, own.features.grid)
    else:
        assert value.features.mask is None and value.features.grid is None


def test_writers_at_the_same_time_lose_nothing(place: Path) -> None:
    threads = [threading.Thread(target=write, args=(place, range(k * 50, k * 50 + 60))) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(place.glob("*.dat"))) == 4
    reader = reader_of(place)
    assert all(found(reader, number) for number in range(210)) and not found(reader, 210)


def test_what_others_write_is_found_later_and_in_other_processes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(place)
    write(place, [1])
    assert not found(reader, 1)  # it looked a moment ago
    monkeypatch.setattr(store, "LOOK", 0.0)
    assert found(reader, 1)
    write(place, [2])
    assert found(pickle.loads(pickle.dumps(reader)), 2)


def test_a_process_that_dies_leaves_a_usable_cache(place: Path) -> None:
    write(place, range(5))
    data, index = next(place.glob("*.dat")), next(place.glob("*.idx"))
    whole = (data.read_bytes(), index.read_bytes())
    for cut in (1, LINE - 1, LINE, 3 * LINE + 7):  # in the index at any place; the last line may name what is not there
        index.write_bytes(whole[1][:-cut])
        reader, kept = reader_of(place), 5 - -(-cut // LINE)
        assert [found(reader, number) for number in range(5)] == [number < kept for number in range(5)]
    index.write_bytes(whole[1])
    data.write_bytes(whole[0][:-1])
    reader = reader_of(place)
    assert [found(reader, number) for number in range(5)] == [True] * 4 + [False]
    assert reader.features(key(4)) == (None, True)
    write(place, [4])
    assert found(reader_of(place), 4)
    data.unlink()
    assert reader_of(place).features(key(0)) == (None, True)


def test_damage_is_seen(place: Path) -> None:
    write(place, range(3))
    data, index = next(place.glob("*.dat")), next(place.glob("*.idx"))
    broken = bytearray(data.read_bytes())
    broken[70] ^= 1
    data.write_bytes(broken)
    lines = bytearray(index.read_bytes())
    lines[LINE + 9] ^= 1
    index.write_bytes(lines)
    reader = reader_of(place)
    assert reader.features(key(0)) == (None, True)
    assert reader.features(key(1)) == (None, False) and reader.index.damaged == 1
    assert found(reader, 2)


def test_the_index_keeps_every_line_while_it_grows(place: Path) -> None:
    reader = reader_of(place)
    for start in range(0, 120, 7):
        write(place, range(start, min(start + 7, 120)))
        reader.index.refresh()
    assert len(reader.index) == 120 and all(found(reader, number) for number in range(120))
    assert reader.index.by_recipe()[RECIPE.hex()][0] == 120


def test_a_limit_and_a_full_disk_end_writing_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    size = sum(map(len, pack(entry()))) + LINE
    writer = write(place, range(10), most=3.5 * size)
    assert writer.entries == 3 and "max_gb" in writer.stopped
    assert folders.used_bytes(place.parent) <= 3.5 * size
    reader = reader_of(place)
    assert [found(reader, number) for number in range(4)] == [True, True, True, False]

    full, plain = Writer(place, 1e9), store._write

    def no_space(file: Any, piece: Any) -> int:
        if full.entries == 2:
            plain(file, piece[:3])
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(file, piece)

    monkeypatch.setattr(store, "_write", no_space)
    assert [full.write(key(n), RECIPE, pack(entry(n))) for n in range(20, 26)] == [True, True] + [False] * 4
    reader = reader_of(place)
    assert [found(reader, number) for number in (20, 21, 22)] == [True, True, False]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "No space left on device" in caplog.text


def test_folders_of_others_are_refused_and_stay(tmp_path: Path, place: Path) -> None:
    write(place, [1])
    cache = place.parent
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(folders.CacheError, match="holds other files"):
        folders.check_folder(other)
    with pytest.raises(folders.CacheError, match="no feature cache is there"):
        folders.clear(other)
    (cache / "notes.txt").write_text("x")
    (place / "notes-1.dat").write_text("x")
    marker = cache / folders.MARKER
    marker.write_text(json.dumps({"format": folders.FORMAT, "version": 9}))
    with pytest.raises(folders.CacheError, match=r"version 9 .* writes and reads 1"):
        folders.check_folder(cache)
    size, left = folders.clear(cache)
    assert size > 0 and sorted(left) == sorted(map(str, (cache / "notes.txt", place / "notes-1.dat")))
    assert sorted(p.name for p in cache.rglob("*") if p.is_file()) == ["notes-1.dat", "notes.txt"]
    assert not folders.check_folder(tmp_path / "nothing")


def media_cache(place: Path, image: ImageRecipe, video: Any = None) -> MediaCache:
    return MediaCache(reader_of(place), image_recipe(image), video_recipe(video))


def keep(place: Path, value: Any) -> None:
    """Write features for what a recipe gave."""
    writer = Writer(place, 1e9)
    for medium in (
        [piece for piece in value.pieces if isinstance(piece, Prepared)] if isinstance(value, Split) else [value]
    ):
        stored: StoredMedium = medium.stored
        shape = (len(medium.pixels), *medium.pixels.shape[-2:])
        if stored.layout is not None:
            writer.write(stored.layout[0], stored.recipe, [stored.layout[1]], 1)
        own = Entry(entry().features, torch.float32, shape, stored.size, stored.decoded)
        writer.write(stored.key, stored.recipe, pack(own))


def test_the_key_is_the_content_of_the_file(tmp_path: Path, place: Path) -> None:
    data = encoded_image()
    for name in ("a.png", "sub.png"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "a.json").write_text(json.dumps(base64.b64encode(data).decode()))
    recipe = ImageRecipe(ImageRecipe.Config(size=8))
    cache = media_cache(place, recipe)
    sources = [str(tmp_path / "a.png"), tmp_path / "sub.png", data, str(tmp_path / "a.json")]
    media = [cache.image(recipe, source, "x", None) for source in sources]
    assert len({medium.stored.key for medium in media}) == 1
    assert all(torch.equal(medium.pixels[0], recipe(data, "x")) for medium in media)
    assert all(medium.size is None and medium.stored.features is None for medium in media)
    pair = cache.image(recipe, (data, data), "x", None)
    other = ImageRecipe(ImageRecipe.Config(size=8, resize="pad"))
    again = media_cache(place, other).image(other, data, "x", None)
    assert len({medium.stored.key for medium in (media[0], pair, again)}) == 3
    assert isinstance(cache.image(recipe, np.zeros((9, 9, 3), np.uint8), "x", None), torch.Tensor)

    keep(place, media[0])
    before = recipe.decoded
    hit = media_cache(place, recipe).image(recipe, data, "x", None)
    assert hit.pixels.is_meta and hit.pixels.shape == media[0].pixels.shape
    assert torch.equal(hit.stored.features.tokens, entry().features.tokens)
    assert recipe.decoded - before == media[0].stored.decoded > 0


def test_an_image_that_becomes_several_media_needs_no_pixels_again(place: Path) -> None:
    recipe = SplitRecipe(SplitRecipe.Config(size=8, longest=16))
    data = encoded_image()
    first = media_cache(place, recipe).image(recipe, data, "x", None)
    keep(place, first)
    hit = media_cache(place, recipe).image(recipe, data, "x", None)
    assert [p if isinstance(p, str) else p.pixels.shape for p in hit.pieces] == [
        p if isinstance(p, str) else p.pixels.shape for p in first.pieces
    ]
    tiles = [piece for piece in hit.pieces if isinstance(piece, Prepared)]
    assert len(tiles) > 1 and all(tile.pixels.is_meta and tile.size == tiles[0].size for tile in tiles)


def test_videos_are_known_by_their_frames(tmp_path: Path, place: Path) -> None:
    image = ImageRecipe(ImageRecipe.Config(size=8))
    recipe = VideoRecipe(VideoRecipe.Config(num_frames=2), image)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for k in range(4):
            (tmp_path / name / f"{k}.png").write_bytes(encoded_image(shade=k * 20))
    cache = media_cache(place, image, recipe)
    videos = [cache.video(recipe, str(tmp_path / name), "x", None) for name in ("one", "two")]
    assert videos[0].stored.key == videos[1].stored.key and len(videos[0].pixels) == 2
    assert torch.equal(videos[0].pixels, recipe(str(tmp_path / "one")))
    keep(place, videos[0])
    assert media_cache(place, image, recipe).video(recipe, str(tmp_path / "two"), "x", None).pixels.is_meta
    drawn = VideoRecipe(VideoRecipe.Config(num_frames=2, sampling="segments"), image)
    assert isinstance(media_cache(place, image, drawn).video(drawn, str(tmp_path / "one"), "x", None), torch.Tensor)


def test_a_random_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match="changes each image at random"):
        image_recipe(ImageRecipe(ImageRecipe.Config(train=ImageRecipe.Train())))
    with pytest.raises(ConfigError, match="does not say whether it is random"):
        image_recipe(lambda *_: None)


def test_a_batch_has_pixels_of_what_is_missing(place: Path) -> None:
    recipe = ImageRecipe(ImageRecipe.Config(size=8))
    sources = [encoded_image(shade=k) for k in range(3)]
    keep(place, media_cache(place, recipe).image(recipe, sources[1], "x", None))
    cache = media_cache(place, recipe)
    media = [cache.image(recipe, source, "x", None) for source in sources]
    own = Example([MEDIA_TOKEN] * 3, [-100] * 3, [m.pixels for m in media], stored=[m.stored for m in media])
    batch = collate([own], 0)
    assert batch.stored is not None and batch.pixels is not None and batch.has_media
    assert torch.equal(batch.pixels, torch.stack([media[0].pixels, media[2].pixels]))
    assert [group.places for group in batch.stored.groups] == [[1]] and batch.stored.hits == 1
    assert batch.stored.shapes == [(1, 8, 8)] * 3
    assert torch.equal(batch.to("cpu").stored.groups[0].features.tokens, entry().features.tokens)  # type: ignore[union-attr]


def test_a_folder_that_somebody_sent_is_data_only(place: Path) -> None:
    write(place, [1])
    data, index = next(place.glob("*.dat")), next(place.glob("*.idx"))
    assert Reader(reader_of(place).index, width=4).features(key(1))[0] is not None
    assert Reader(reader_of(place).index, width=5).features(key(1)) == (None, True)  # of no model like this one
    head = bytearray(pack(entry(1))[0])
    head[28:32] = b"\xff" * 4  # the height
    head[32:36] = b"\xff" * 4
    Writer(place, 1e9).write(key(2), RECIPE, [head, *pack(entry(1))[1:]])
    assert reader_of(place).features(key(2)) == (None, True)
    index.write_bytes(line(key(3), RECIPE, 0, 0, 1 << 46, 0))
    with open(data, "r+b") as file:
        file.truncate(1 << 43)  # holes only
    assert reader_of(place).features(key(3)) == (None, True)
    data.unlink()
    os.mkfifo(data)
    assert reader_of(place).features(key(3)) == (None, True)
    (place / "about.json").unlink()
    os.mkfifo(place / "about.json")
    assert folders.read_json(place / "about.json") == {}


@pytest.mark.parametrize(
    "text", [b"[1,", b'{"a": 1}', b"3", b"[[0]]", b"[-1]", b"[0.5]", b"[true]", b"[]", b"[1]", b"[" * 9999]
)
def test_a_layout_that_cannot_be_is_none(text: bytes) -> None:
    assert layout_of(text) is None
    assert layout_of(b'["a", 0, 1]') == ["a", 0, 1]


def test_nothing_behind_a_link_is_deleted(place: Path, tmp_path: Path) -> None:
    write(place, [1])
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    before = sorted(p.name for p in (tmp_path / "elsewhere").iterdir())
    assert folders.clear(place.parent)[1] == [str(place)]
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == before


def test_a_cache_that_is_cleared_meanwhile_ends_writing(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer(place, 1e9)
    folders.clear(place.parent)
    assert not writer.write(key(1), RECIPE, pack(entry())) and "cannot be written" in writer.stopped
