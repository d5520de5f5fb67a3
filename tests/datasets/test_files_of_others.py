"""Folders, archives and tables as other programs leave them: hidden files, captions beside JSON, splits, bombs."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.common.files import is_hidden
from vlm.common.paths import expand_home
from vlm.datasets.base import read_record, records_in_order
from vlm.datasets.formats import shard_reader
from vlm.datasets.formats.caption_folder import CaptionFolder
from vlm.datasets.formats.conversation_json import ConversationJson
from vlm.datasets.formats.table import arrow
from vlm.datasets.formats.table.table import Table
from vlm.datasets.formats.web_shards import WebShards
from vlm.datasets.media_field import medium_of
from vlm.processors.video.read import open_clip

Bytes = Callable[..., bytes]
APPLE = b"\0\5\x16\7\0\2\0\0Mac OS X        \xff\xfe"


def table(path: Path, **options: Any) -> Table:
    return Table(Table.Config(str(path), **{"user": "What?", "assistant": "{text}", **options}))


def media_of(data: Any) -> list[Any]:
    return [[m.source for m in read_record(data, k, raw).messages[0].media] for k, raw in records_in_order(data)]


def texts_of(data: Any) -> list[str]:
    return [read_record(data, k, raw).messages[-1].text for k, raw in records_in_order(data)]


@pytest.mark.parametrize("name", ["._1.jpg", "./._a.txt", "a/.DS_Store", "__MACOSX/1.jpg", "a/Thumbs.db", ".git/x"])
def test_hidden(name: str) -> None:
    assert is_hidden(name)
    assert not any(map(is_hidden, ("./1.jpg", "../1.jpg", "a/b.c.jpg", "1._x.jpg", "/abs/1.jpg")))


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_tar_of_a_mac(suffix: str, tmp_path: Path, image_of: Bytes, caplog: pytest.LogCaptureFixture) -> None:
    members: dict[str, bytes] = {"./.DS_Store": APPLE}
    for k in range(3):
        own = {f"{k}.png": image_of(k), f"{k}.json": json.dumps({"caption": f"no {k}"}).encode()}
        members |= {f"./{p}{n}": d for n, data in own.items() for p, d in (("._", APPLE), ("", data))}
        members[f"__MACOSX/._{k}.png"] = APPLE
    (tmp_path / "shards").mkdir()
    file = write_tar(tmp_path / "shards" / f"0{suffix}", members, "w:gz" if suffix == ".tar.gz" else "w")
    (tmp_path / "shards" / "._0.tar").write_bytes(APPLE)
    data = WebShards(WebShards.Config(str(tmp_path / "shards" if suffix == ".tar" else file)))
    assert texts_of(data) == ["no 0", "no 1", "no 2"]
    assert "10 hidden files left out, the first is ./.DS_Store" in caplog.text


def test_captions_beside_a_json_without_one(tmp_path: Path, image_of: Bytes) -> None:
    notes = ['{"url": "x"}', '{"caption": null}', '{"caption": "json"}', "[]", '{"caption": " "}']
    members = {f"{k}.{e}": d for k, note in enumerate(notes) for e, d in (
        ("png", image_of(k)), ("txt", b"\xef\xbb\xbf text "), ("json", note.encode()))}  # fmt: skip
    file = write_tar(tmp_path / "0.tar", members)
    assert texts_of(WebShards(WebShards.Config(str(file)))) == ["text", "text", "json", "text", "text"]
    pics = tmp_path / "pics"
    pics.mkdir()
    for k, note in enumerate(['{"text": null, "n": 1}', '{"n": 2}', '{"text": "json"}', '{"text": ""}']):
        (pics / f"{k}.png").write_bytes(image_of(k))
        (pics / f"{k}.txt").write_text("text")
        (pics / f"{k}.json").write_text(note)
    assert texts_of(table(pics)) == ["text", "text", "json", "text"]


def test_folders_of_a_mac(tmp_path: Path, image_of: Bytes, caplog: pytest.LogCaptureFixture) -> None:
    for k in range(2):
        for place, name in ((".", f"{k}"), (".", f"._{k}"), ("__MACOSX", f"._{k}")):
            (tmp_path / place).mkdir(exist_ok=True)
            real = place == "." and not name.startswith("._")
            (tmp_path / place / f"{name}.png").write_bytes(image_of(k) if real else APPLE)
            (tmp_path / place / f"{name}.txt").write_bytes(b"text" if real else APPLE)
    (tmp_path / "Thumbs.db").write_bytes(APPLE)
    assert texts_of(table(tmp_path)) == ["text", "text"]
    assert "4 hidden images (such as ._1.jpg of a Mac) are left out" in caplog.text
    clip = open_clip(tmp_path, "frames")
    assert [f.name for f in clip.read(range(clip.count))] == ["0.png", "1.png"]


def split(root: Path, name: str, image_of: Bytes, kind: str) -> None:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(image_of(0))
    if kind == "txt":
        (folder / "0.txt").write_text(name)
    elif kind == "csv":
        (folder / "metadata.csv").write_text(f"file_name,text\n0.png,{name}\n")
    else:
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": name}))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_splits_of_an_image_folder(
    kind: str, tmp_path: Path, image_of: Bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("train", "validation"):
        split(tmp_path / "two", name, image_of, kind)
    data = table(tmp_path / "two")
    assert texts_of(data) == ["train"] and os.path.isfile(media_of(data)[0][0])
    assert "only its split train is read, not validation" in caplog.text
    assert texts_of(table(tmp_path / "two" / "validation")) == ["validation"]
    split(tmp_path / "eval", "test", image_of, kind)
    with pytest.raises(DataError, match="has splits, but none for training"):
        table(tmp_path / "eval")
    for name in ("cats", "dogs"):  # classes, not splits
        split(tmp_path / "classes", name, image_of, kind)
    assert texts_of(table(tmp_path / "classes")) == ["cats", "dogs"]


def test_images_with_other_endings_beside_a_caption_file(tmp_path: Path, image_of: Bytes) -> None:
    (tmp_path / "image").mkdir()
    names = ["0.jpg", "1.png", "2.jpeg", "3.webp", "4.JPG", "5.PNG", "6.gif"]
    for k, name in enumerate(names):
        (tmp_path / "image" / name).write_bytes(image_of(k))
    notes = [{"image_id": k, "caption": "一张红色的卡片"} for k in range(len(names))] + [
        {"image_id": "1.png", "caption": "x"}
    ]
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": notes}), encoding="utf-8-sig")
    found = media_of(CaptionFolder(CaptionFolder.Config(str(tmp_path))))
    assert [Path(f[0]).name for f in found] == [*names, "1.png"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_base64_in_tables(suffix: str, tmp_path: Path, image_of: Bytes) -> None:
    data = image_of(1) + b"\0" * 200_000  # longer than Python's limit of a cell
    text, sep = base64.b64encode(data).decode(), "," if suffix == "csv" else "\t"
    rows = [["image", "text"], ['"data:image/png;base64,' + text + '"', "a"], [text, "b"], ["9j/1.png", "c"]]
    file = tmp_path / f"a.{suffix}"
    file.write_text("\n".join(sep.join(row) for row in rows))
    assert media_of(table(file, image_path="p")) == [[data], [data], [str(Path("p/9j/1.png"))]]


def test_a_record_without_image_under_a_pattern(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "image": "x"}, {"id": 2, "image": None}, {"id": None}, {"id": 4}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "t", **row}) for row in rows))
    data = table(tmp_path / "a.jsonl", image_pattern="{id:03d}.jpg")
    assert media_of(data) == [["001.jpg"], [], [], ["004.jpg"]]


def test_a_list_of_one_image_is_an_image(tmp_path: Path, image_of: Bytes) -> None:
    (tmp_path / "1.png").write_bytes(image_of(1))
    one = medium_of(["1.png"], tmp_path, "here")
    assert type(one).__name__ == "Image" and one is not None and one.source == str(tmp_path / "1.png")
    assert type(medium_of(["1.png", "1.png"], tmp_path, "here")).__name__ == "Video"


def test_home_is_expanded_in_all_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_of: Bytes) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tree = {"a": ["~/x", ("~/y", 1)], "b": {"c": Path("~/z")}, "d": "~", "e": "a~/b", "f": "~ / about"}
    home = str(tmp_path)
    wanted = {"a": [f"{home}/x", (f"{home}/y", 1)], "b": {"c": tmp_path / "z"}, "d": "~", "e": "a~/b", "f": "~ / about"}
    assert expand_home(tree) == wanted
    (tmp_path / "1.png").write_bytes(image_of(1))
    (tmp_path / "a.jsonl").write_text('{"image": "~/1.png", "text": "t"}')
    assert media_of(table(Path("~/a.jsonl"), image_path="~/p", missing_images="drop")) == [[f"{home}/1.png"]]


@pytest.mark.parametrize("pattern", ["{000000..9999999}", "{0..9999}/{a,b}{0..999}", f"{{0..{10**20}}}"])
def test_brace_patterns_are_counted_before_they_are_expanded(pattern: str) -> None:
    with pytest.raises(DataError, match=r"names [\d,]+ shards, allowed are 1,000,000"):
        WebShards(WebShards.Config(f"/nowhere/{pattern}.tar"))
    assert shard_reader.brace_count("a{00..09}{x,y}{1..9..4}.tar") == 60


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_members_of_any_declared_size(suffix: str, tmp_path: Path, image_of: Bytes) -> None:
    huge = tarfile.TarInfo("1.png")
    huge.size = 3 << 30
    good = {"0.png": image_of(0), "0.txt": b"text"}
    write_tar(tmp_path / "a", good)
    head = (tmp_path / "a").read_bytes()[: 512 * 4] + huge.tobuf()
    if suffix == ".tar":
        with (tmp_path / "a.tar").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + huge.size)
    else:
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(head + b"\0" * 4096))
    first, *rest = list(WebShards(WebShards.Config(str(tmp_path / f"a{suffix}"))).records(None))
    assert first.key == "0" and not first.fault
    assert "has 3,221,225,472 bytes, allowed are 536,870,912" in rest[0].fault


def test_a_tar_header_that_would_be_read_whole(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 3 << 30
        with (tmp_path / "a.tar").open("wb") as file:
            file.write(info.tobuf())
            file.truncate(4 << 30)
        (record,) = shard_reader.read_shard(str(tmp_path / "a.tar"))
        assert "a name or attributes of 3,221,225,472 bytes" in record.fault


def test_text_files_that_are_not_regular_or_endless(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    for path in (tmp_path / "a.jsonl", Path("/dev/zero")):
        with pytest.raises(DataError, match="not a (regular )?file"):
            table(path, file_type="jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    with pytest.raises(DataError, match=r"unknown kind of file \(suffix .gz\)"):
        table(tmp_path / "b.jsonl.gz")


def test_json_of_any_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep = '{"text": ' + "[" * 100_000
    (tmp_path / "a.json").write_text(deep)
    with pytest.raises(DataError, match="a.json is nested too deeply"):
        table(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_text(deep + '\n{"text": "t"}\n')
    data = table(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="a.jsonl:1 is nested too deeply"):
        data[0]
    assert data[1].messages[-1].text == "t"
    (tmp_path / "a.jpg.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not JSON"):
        medium_of("a.jpg.json", tmp_path, "here")


def test_a_parquet_file_that_expands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 10_000]))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", store_schema=False)
    assert len(table(tmp_path / "a.parquet")) == 1000
    monkeypatch.setattr(arrow, "MAX_EXPANDED", 1 << 20)
    monkeypatch.setattr(arrow, "MAX_RATIO", 10)
    with pytest.raises(DataError, match="holds more than 1,048,576 bytes once expanded"):
        table(tmp_path / "a.parquet")


def test_logging_is_quiet_without_hidden_files(
    tmp_path: Path, image_of: Bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        file = write_tar(tmp_path / "0.tar", {"0.png": image_of(0), "0.txt": b"t"})
        assert texts_of(WebShards(WebShards.Config(str(file)))) == ["t"]
    assert not caplog.text


def test_a_dialogue_without_image_under_a_pattern(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "red"}]
    rows: list[dict[str, Any]] = [{"id": 1}, {"id": 2, "image": None}, {"id": 3, "image": "x.png"}]
    (tmp_path / "a.json").write_text(json.dumps([{**row, "conversations": turns} for row in rows]))
    data = ConversationJson(ConversationJson.Config(str(tmp_path / "a.json"), image_pattern="{id}.jpg"))
    assert media_of(data) == [["1.jpg"], [], ["x.png"]]
