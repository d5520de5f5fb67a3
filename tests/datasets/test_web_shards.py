from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.datasets.web_shards import WebShards


def load(storage: Any, **options: Any) -> WebShards:
    return WebShards(WebShards.Config(storage=storage, **options))


def keys(data: WebShards, seed: int | None) -> list[str]:
    return [r.key for r in data.records(seed)]


def test_a_record_becomes_a_picture_and_its_caption(
    shards: Callable[..., Path], picture_of: Callable[..., bytes]
) -> None:
    data = load(str(shards((2, 1))))
    raws = list(data.records(None))
    assert [r.key for r in raws] == ["000000", "000001", "000002"]
    sample = data.decode(raws[1])
    assert sample.messages[0].media[0].source == picture_of(1)
    assert sample.messages[1].text.startswith("The ")
    assert sample.id == "000001"


def test_storage_may_be_a_folder_file_glob_braces_or_list(shards: Callable[..., Path]) -> None:
    root = shards((1, 1, 1))
    whole = [str(root / f"{n:05d}.tar") for n in range(3)]
    assert load(str(root)).shards == whole
    assert load(whole[1]).shards == whole[1:2]
    assert load(str(root / "*.tar")).shards == whole
    assert load(str(root / "{00000..00002}.tar")).shards == whole
    assert load([whole[2], str(root / "{00000,00001}.tar")]).shards == [whole[2], whole[0], whole[1]]


def test_urls_are_streamed_with_the_same_records(shards: Callable[..., Path]) -> None:
    root = shards((2, 2))
    local, remote = load(str(root)), load([f"file://{root}/{n:05d}.tar" for n in range(2)])
    piped = load(f"pipe:cat {root}/00000.tar")
    for other, count in ((remote, 4), (piped, 2)):
        raws = list(other.records(None))
        assert len(raws) == count
        for mine, theirs in zip(local.records(None), raws, strict=False):
            assert isinstance(theirs.members["png"], bytes)
            assert local.decode(mine) == other.decode(theirs)


def test_the_seed_decides_the_order(shards: Callable[..., Path]) -> None:
    root = shards((20, 20, 20))
    for size in (0, 7, 1000):
        data = load(str(root), shuffle=size)
        assert keys(data, 1) == keys(data, 1)
        assert len({tuple(keys(data, seed)) for seed in range(6)}) > 1
        assert sorted(keys(data, 1)) == keys(data, None)


def test_other_layouts(tmp_path: Path, tar_add: Callable[..., None], picture_of: Callable[..., bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("dir"))  # no file content
        tar_add(tar, "x/1.JPEG", picture_of(1, "JPEG"))
        tar_add(tar, "x/1.txt", b" a red boat \n")
        tar_add(tar, "y/1.webp", picture_of(2, "WEBP"))
        tar_add(tar, "y/1.json", json.dumps({"text": "two birds"}).encode())
        tar_add(tar, "y/1.seg.png", b"ignored")
    data = load(str(tmp_path), caption_key="text")
    raws = [r for r in data.records(None) if r.key != "dir"]
    assert [data.decode(r).messages[1].text for r in raws] == ["a red boat", "two birds"]
    assert [r.key for r in raws] == ["x/1", "y/1"]


def test_records_that_cannot_be_used_name_themselves(
    tmp_path: Path, tar_add: Callable[..., None], picture_of: Callable[..., bytes]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar_add(tar, "1.json", b'{"caption": "x"}')
        tar_add(tar, "2.png", picture_of(2))
        tar_add(tar, "3.png", picture_of(3))
        tar_add(tar, "3.json", b"{oops")
        tar_add(tar, "4.png", picture_of(4))
        tar_add(tar, "4.json", b'{"caption": 5}')
    data = load(str(tmp_path))
    words = ["record 1: no picture", "record 2: no caption", "record 3: unreadable", "record 4: no caption"]
    for raw, expected in zip(data.records(None), words, strict=True):
        with pytest.raises(DataError, match=expected):
            data.decode(raw)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_tar_gives_its_whole_records_and_one_fault(
    tmp_path: Path, shards: Callable[..., Path], compressed: bool
) -> None:
    root = shards((6,))
    file = root / "00000.tar"
    data = file.read_bytes()
    file.write_bytes(data[: 512 * 9 + 100])
    storage = f"file://{file}" if compressed else str(root)
    dataset = load(storage)
    raws = list(dataset.records(None))
    good = [r for r in raws if not r.fault]
    assert 1 <= len(good) < 6
    assert [r.key for r in good] == [f"{k:06d}" for k in range(len(good))]
    with pytest.raises(DataError, match=r"00000\.tar"):
        dataset.decode(raws[-1])


def test_a_shard_that_vanishes_while_training(shards: Callable[..., Path]) -> None:
    root = shards((2,))
    data = load(str(root))
    raw = next(iter(data.records(None)))
    (root / "00000.tar").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        data.decode(raw)
    assert [r.fault for r in data.records(None)][0].startswith("damaged tar")


def test_missing_shards_are_errors_at_once(tmp_path: Path, shards: Callable[..., Path]) -> None:
    root = shards((1,))
    with pytest.raises(DataError, match="1 of 2 shards are missing, the first is .*00001.tar"):
        load(str(root / "{00000..00001}.tar"))
    with pytest.raises(DataError, match="no shard at"):
        load(str(tmp_path / "*.tar"))
