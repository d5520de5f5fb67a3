from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import sys
import tarfile
import threading
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.common.types import Image, Input, Sample, Video
from vlm.datasets.base import message
from vlm.datasets.formats.shard_sample import to_members
from vlm.datasets.formats.web_shards import WebShards
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.train_loader import TrainLoader


def load(storage: Any, **options: Any) -> WebShards:
    return WebShards(WebShards.Config(storage=storage, **options))


def keys(data: WebShards, seed: int | None) -> list[str]:
    return [r.key for r in data.records(seed)]


def test_a_record_becomes_a_image_and_its_caption(shards: Callable[..., Path], image_of: Callable[..., bytes]) -> None:
    data = load(str(shards((2, 1))))
    raws = list(data.records(None))
    assert [r.key for r in raws] == ["000000", "000001", "000002"]
    sample = data.decode(raws[1])
    assert sample.messages[0].media[0].source == image_of(1)
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


def test_other_layouts(tmp_path: Path, tar_add: Callable[..., None], image_of: Callable[..., bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("dir"))  # no file content
        tar_add(tar, "x/1.JPEG", image_of(1, "JPEG"))
        tar_add(tar, "x/1.txt", b" a red boat \n")
        tar_add(tar, "y/1.webp", image_of(2, "WEBP"))
        tar_add(tar, "y/1.json", json.dumps({"text": "two birds"}).encode())
        tar_add(tar, "y/1.seg.png", b"ignored")
    data = load(str(tmp_path), caption_key="text")
    raws = [r for r in data.records(None) if r.key != "dir"]
    assert [data.decode(r).messages[1].text for r in raws] == ["a red boat", "two birds"]
    assert [r.key for r in raws] == ["x/1", "y/1"]


def test_records_that_cannot_be_used_name_themselves(
    tmp_path: Path, tar_add: Callable[..., None], image_of: Callable[..., bytes]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar_add(tar, "1.json", b'{"caption": "x"}')
        tar_add(tar, "2.png", image_of(2))
        tar_add(tar, "3.png", image_of(3))
        tar_add(tar, "3.json", b"{oops")
        tar_add(tar, "4.png", image_of(4))
        tar_add(tar, "4.json", b'{"caption": 5}')
    data = load(str(tmp_path))
    words = ["record 1: no image", "record 2: no caption", "record 3: unreadable", "record 4: no caption"]
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


def write(file: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def reasons(data: WebShards) -> list[str]:
    """Per record its caption, or why it cannot be used."""
    found = []
    for raw in data.records(None):
        try:
            found.append(data.decode(raw).messages[-1].text)
        except DataError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_members_that_are_refused(tmp_path: Path, image_of: Callable[..., bytes], scheme: str) -> None:
    image, good = image_of(1), b"fine"
    file = write(
        tmp_path / "a.tar",
        [
            ("1.png", image),
            ("1.txt", good),
            ("../2.png", image),
            ("../2.txt", good),
            ("/tmp/3.png", image),
            ("4.png", image),
            ("4.PNG", image),
            ("4.txt", good),
            ("5.png", image),
            ("5.txt", good),
            ("1.png", image),
            ("1.txt", good),
        ],
    )
    found = reasons(load(f"{scheme}{file}"))
    assert [f for f in found if f == "fine"] == ["fine", "fine"]
    assert "record ../2: refused: member name '../2.txt' leads out of its folder" in found[1]
    assert "member name '/tmp/3.png' leads out" in found[2]
    assert "record 4: two members with the extension 'png', the second is '4.PNG'" in found[3]
    assert "record 1: the key occurred before in this shard" in found[5]


def test_bad_records_of_a_shard_are_counted(tmp_path: Path, image_of: Callable[..., bytes], processor: Any) -> None:
    write(tmp_path / "a.tar", [*[(f"{k}.png", image_of(k)) for k in (1, 1)], ("2.png", image_of(2)), ("2.txt", b"b")])
    loader = TrainLoader([Source("mine", load(str(tmp_path)), 1)], processor, seed=0)
    for _ in range(4):
        next(loader)
    assert loader.counts["mine"]["bad"] >= 1
    loader.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a server of tmp_path in a thread of its own."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_shards_over_http(server: str, shards: Callable[..., Path]) -> None:
    root = shards((2, 3))
    local, remote = load(str(root)), load(f"{server}/shards/{{00000..00001}}.tar")
    assert [remote.decode(r) for r in remote.records(None)] == [local.decode(r) for r in local.records(None)]
    assert sorted(keys(remote, 5)) == keys(local, None)
    (error,) = reasons(load(f"{server}/shards/7.tar"))
    assert "7.tar: record after start: unreadable (HTTP Error 404" in error


def test_a_server_that_fails_at_first(shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = shards((1,)) / "00000.tar"
    calls: list[str] = []

    def urlopen(shard: str, timeout: float) -> Any:
        calls.append(shard)
        if len(calls) < 3:
            raise urllib.error.URLError("no route") if len(calls) == 1 else busy
        return file.open("rb")

    busy = urllib.error.HTTPError("x", 503, "busy", None, None)  # type: ignore[arg-type]
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert len(list(load("http://shards.example.org/0.tar").records(None))) == 1
    assert len(calls) == 3
    calls[:] = []
    monkeypatch.setattr("vlm.datasets.formats.shard_reader.OPEN_ATTEMPTS", 2)
    assert "unreadable (HTTP Error 503: busy)" in reasons(load("http://shards.example.org/0.tar"))[0]


def test_object_storage(shards: Callable[..., Path]) -> None:
    fsspec = pytest.importorskip("fsspec")
    root = shards((2,))
    with fsspec.open("memory://bucket/0.tar", "wb") as file:
        file.write((root / "00000.tar").read_bytes())
    local, remote = load(str(root)), load("memory://bucket/0.tar")
    assert [remote.decode(r) for r in remote.records(None)] == [local.decode(r) for r in local.records(None)]
    assert "unreadable" in reasons(load("memory://bucket/1.tar"))[0]
    with pytest.raises(DataError, match=r"use a path, http\(s\)://, s3://"):
        list(load("strange://bucket/1.tar").records(None))


def test_object_storage_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DataError, match="s3://bucket/1.tar needs the package s3fs\n  fix: pip install s3fs"):
        list(load("s3://bucket/1.tar").records(None))


def test_a_conversation_in_a_record(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    sample = Sample(
        messages=(
            message("system", "看图说话。"),
            message("user", Image(image_of(1)), "这两张图有什么不同?", Image(image_of(2, "JPEG")), Input("选项: 甲")),
            message("assistant", "第一张是红色的。"),
            message("user", Video([image_of(3), image_of(4)])),
            message("assistant", "ok"),
        ),
        id="对话.1",
        only_last=True,
    )
    members = to_members(sample)
    assert list(members) == ["sample.json", "0.png", "1.jpg", "2.png", "3.png"]
    assert "看图说话" in members["sample.json"].decode()
    write(tmp_path / "a.tar", [(f"000.{ext}", data) for ext, data in members.items()])
    data = load(str(tmp_path))
    assert [data.decode(raw) for raw in data.records(None)] == [sample]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{oops", "sample.json is not JSON"),
        (b"[1]", r'list "messages" of at least one message'),
        (b'{"messages": []}', "at least one"),
        (b'{"messages": [{"role": "bot", "parts": []}]}', r"message 1: role 'bot' \(known: system, user, assistant\)"),
        (b'{"messages": [{"role": "user", "parts": "x"}]}', "parts must be a list, found str"),
        (b'{"messages": [{"role": "user", "parts": [{"sound": "x"}]}]}', "is not one of text, input, image, video"),
        (b'{"messages": [{"role": "user", "parts": [{"image": "0.jpg"}]}]}', "no member '0.jpg'"),
        (b'{"messages": [{"role": "user", "parts": [{"image": ["0.jpg"]}]}]}', "is not one of text"),
        (b'{"messages": [{"role": "assistant", "parts": [{"text": " "}]}]}', "message 1: the answer is empty"),
    ],
)
def test_faulty_conversations_in_a_record(tmp_path: Path, text: bytes, said: str) -> None:
    write(tmp_path / "a.tar", [("7.sample.json", text)])
    data = load(str(tmp_path))
    with pytest.raises(DataError, match=f"record 7: .*{said}"):
        data.decode(next(data.records(None)))


@pytest.mark.parametrize(("ext", "text"), [("txt", b" \n"), ("json", b'{"caption": ""}')])
def test_empty_captions(tmp_path: Path, ext: str, text: bytes, image_of: Callable[..., bytes]) -> None:
    write(tmp_path / "a.tar", [("7.png", image_of(1)), (f"7.{ext}", text)])
    data = load(str(tmp_path))
    with pytest.raises(DataError, match="record 7: the caption is empty\n  fix: remove"):
        data.decode(next(data.records(None)))


def test_media_that_cannot_be_stored(tmp_path: Path) -> None:
    for source, said in ((str(tmp_path / "no.png"), "no file"), (str(tmp_path), "cannot be read"), (3, "a int cannot")):
        with pytest.raises(DataError, match=f"sample 9: .*{said}"):
            to_members(Sample((message("user", Image(source)),), id="9"))


def test_clips_of_frames_keep_their_order(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    frames = [image_of(k) for k in (1, 2, 10)]
    folder = tmp_path / "clip"
    folder.mkdir()
    for k, data in zip((1, 2, 10), frames, strict=True):
        (folder / f"{k}.png").write_bytes(data)
    texts = [base64.b64encode(f).decode() for f in frames]
    (tmp_path / "clip.json").write_text(json.dumps(texts))
    (tmp_path / "one.json").write_text(json.dumps(texts[0]))
    (tmp_path / "clip.mp4").write_bytes(b"film")
    sources: list[Any] = [str(folder), str(tmp_path / "clip.json"), [str(folder / "1.png"), texts[1], frames[2]]]
    parts = [Video(s) for s in sources] + [Video(str(tmp_path / "clip.mp4")), Image(str(tmp_path / "one.json"))]
    members = to_members(Sample((message("user", *parts),), id="7"))
    assert [members[f"{k}.png"] for k in range(3)] == frames and "10.mp4" not in members
    write(tmp_path / "a.tar", [(f"1.{ext}", data) for ext, data in members.items()])
    data = load(str(tmp_path / "a.tar"))
    media = data.decode(next(data.records(None))).messages[0].media
    assert [m.source for m in media] == [frames, frames, frames, b"film", frames[0]]
    with pytest.raises(DataError, match="clip.json holds 3 images"):
        to_members(Sample((message("user", Image(str(tmp_path / "clip.json"))),), id="7"))


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("blocks", [12, 12.3])
def test_a_tar_that_is_cut_between_members_is_told(shards: Callable[..., Path], scheme: str, blocks: float) -> None:
    """Three records of four blocks each are whole; tarfile alone would take this for the end."""
    file = shards((6,)) / "00000.tar"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(512 * blocks)])
    found = reasons(load(f"{scheme}{file}"))
    assert len(found) == 4
    assert "record after 000002: " in found[-1] and "no end marker: truncated, records may be missing" in found[-1]
    file.write_bytes(whole)
    assert len(reasons(load(f"{scheme}{file}"))) == 6
