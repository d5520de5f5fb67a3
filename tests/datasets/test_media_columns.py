from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.common.registry import resolve
from vlm.common.types import Image
from vlm.config.api import load_config
from vlm.datasets.formats.table.read import read_rows
from vlm.datasets.loading.media_check import check_media
from vlm.datasets.loading.sources import build_source
from vlm.datasets.media_columns import COLUMNS
from vlm.datasets.media_field import media_of

TURNS = [{"from": "human", "value": "What colour?"}, {"from": "gpt", "value": "Red."}]
RECORD = {"question": "What colour?", "answer": "Red.", "conversations": TURNS}
FORMATS = ("table", "conversation_json")


def dataset(kind: str, folder: Path, records: Any, **options: Any) -> Any:
    (folder / "a.json").write_text(json.dumps(records))
    found = resolve("dataset", kind)
    return found(found.Config(ann_path=str(folder / "a.json"), **options))


def entry(data: Any, data_type: str = "") -> Any:
    return SimpleNamespace(format=SimpleNamespace(config=data.config), data_type=data_type)


def media(data: Any, index: int = 0) -> list[str]:
    return [type(m).__name__ + Path(m.source).name for message in data[index].messages for m in message.media]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", [*COLUMNS["image"], *COLUMNS["video"], "Image", "IMG_PATH"])
def test_known_columns_of_every_format(tmp_path: Path, kind: str, column: str) -> None:
    several = [{**RECORD, column: value} for value in ("1.jpg", ["1.jpg", "2.jpg"], None, [])]
    data = dataset(kind, tmp_path, several, image_path="p")
    name = "Video" if "video" in column else "Image"
    assert [media(data, k) for k in range(4)] == [[f"{name}1.jpg"], [f"{name}1.jpg", f"{name}2.jpg"], [], []]
    check_media("mine", entry(data, "images"), data)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_first_known_column_counts_unless_one_is_named(tmp_path: Path, kind: str) -> None:
    records = [{**RECORD, "image": "1.jpg", "images": ["2.jpg"], "photo_of": "3.jpg"}]
    assert media(dataset(kind, tmp_path, records)) == ["Image1.jpg"]
    assert media(dataset(kind, tmp_path, records, fields={"image": "photo_of"})) == ["Image3.jpg"]


@pytest.mark.parametrize("kind", FORMATS)
def test_typed_parts_hold_their_image(tmp_path: Path, kind: str) -> None:
    content = [
        {"type": "image", "image": "1.jpg"},
        {"type": "image_url", "image_url": {"url": "2.jpg"}},
        {"type": "text", "text": "Same?"},
    ]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "No."}]}]
    options = {"messages": "conversations"} if kind == "table" else {}
    assert media(dataset(kind, tmp_path, [{"conversations": turns}], **options)) == ["Image1.jpg", "Image2.jpg"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("column", "options", "data_type", "words"),
    [
        ("path", {"image_path": "p"}, "", "image_path: p is set; .*fix: .*fields={image: path}"),
        ("path", {}, "images", "data_type: images is set"),
        ("path", {}, "", "the column path seems to hold files"),
        ("imageId", {"image_path": "p"}, "", "image_path: p is set; .*image_pattern: '{imageId}.jpg'"),
        ("nothing", {}, "videos", "data_type: videos is set"),
    ],
)
def test_promised_images_that_no_record_yields(
    tmp_path: Path, kind: str, column: str, options: dict, data_type: str, words: str
) -> None:
    value = {"path": "1.jpg", "imageId": "17", "nothing": ""}[column]
    data = dataset(kind, tmp_path, [{**RECORD, column: value}] * 3, **options)
    with pytest.raises(DataError, match=f"(?s)dataset mine: no record has an image or video, but .*{words}"):
        check_media("mine", entry(data, data_type), data)
    check_media("mine", entry(data, "text"), data)


def test_texts_without_a_promise_and_mixtures_are_fine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_media("mine", entry(data := dataset("conversation_json", tmp_path, [RECORD] * 9)), data)
    mixture = [RECORD] * 300 + [{**RECORD, "image": "1.jpg"}]
    check_media("mine", entry(data := dataset("conversation_json", tmp_path, mixture, image_path="p")), data)
    caplog.clear()
    half = [{**RECORD, "image": "1.jpg"}, {**RECORD, "file_of": "2.jpg"}] * 4
    with caplog.at_level(logging.WARNING):
        check_media("mine", entry(data := dataset("conversation_json", tmp_path, half, image_path="p")), data)
    assert "4 of 8 records looked at have no image or video, but files in file_of" in caplog.text


@pytest.mark.parametrize("corpus", ["gqa", "mmgpt_gqa"])
def test_gqa_as_published(tmp_path: Path, corpus: str) -> None:
    question = {
        "imageId": "2354786",
        "question": "Is it dark?",
        "answer": "yes",
        "fullAnswer": "Yes, it is.",
        "groups": {},
    }
    (tmp_path / "q.json").write_text(json.dumps({"02930152": question, "07333408": question}))
    info = {"ann_path": str(tmp_path / "q.json"), "image_path": "img"}
    found = build_source(corpus, _entry(tmp_path, corpus, info), 32).dataset
    assert (len(found), media(found)) == (2, ["Image2354786.jpg"])
    assert found[0].messages[-1].text == ("yes" if corpus == "gqa" else "Yes, it is.")
    if corpus == "gqa":
        (tmp_path / "q.json").write_text(json.dumps([{"image": "n1.jpg", "question": "Q?", "answer": "a"}]))
        assert media(build_source(corpus, _entry(tmp_path, corpus, info), 32).dataset) == ["Imagen1.jpg"]


def _entry(folder: Path, corpus: str, info: dict) -> Any:
    model: dict = {"vision": {"name": "timm", "model": "vit_tiny_patch16_224"}, "llm": {"name": "hf", "path": "x"}}
    model |= {"fusion": {"name": "splice"}, "template": {"name": "plain"}}
    (folder / "c.yaml").write_text(json.dumps({"model": model, "datasets": {corpus: {"build_info": info}}}))
    return load_config(folder / "c.yaml", check="none").datasets[corpus]


@pytest.mark.parametrize("missing", ["NaN", "Infinity", "-Infinity", "1e999", "null"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_nan_is_a_missing_value(tmp_path: Path, missing: str, name: str) -> None:
    found = resolve("dataset", "table")

    def read(column: str) -> Any:
        values = {"image": '"1.jpg"', "question": '"Q?"', "answer": '"a"', column: missing}
        text = "{" + ", ".join(f'"{k}": {v}' for k, v in values.items()) + "}"
        (tmp_path / name).write_text(f"[{text}]" if name == "a.json" else text)
        return found(found.Config(ann_path=str(tmp_path / name)))[0]

    with pytest.raises(DataError, match="the answer is empty"):
        read("answer")
    with pytest.raises(DataError, match="question: null, expected a text"):
        read("question")
    assert [m.media for m in read("image").messages] == [(), ()]


def test_nan_in_parquet_and_in_lists(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"answer": [math.nan, 2.5], "scores": [[1.0, math.inf], [1.0]], "meta": [{"x": math.nan}, {"x": 1.0}]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows = read_rows(str(tmp_path / "a.parquet")).records
    assert rows[0] == {"answer": None, "scores": [1.0, None], "meta": {"x": None}}
    assert rows[1]["answer"] == 2.5
    found = resolve("dataset", "table")
    listed = [{"question": "Q?", "answer": [math.nan, "red"]}, {"question": "Q?", "answer": [math.nan]}]
    (tmp_path / "a.json").write_text(json.dumps(listed))
    data = found(found.Config(ann_path=str(tmp_path / "a.json")))
    assert data[0].messages[-1].text == "red"
    with pytest.raises(DataError, match="the list of answers is empty"):
        data[1]


def test_media_of_records_as_commands_read_them(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg", "v.mp4"):
        (tmp_path / name).write_bytes(b"x")

    def read(record: dict, field: str = "") -> list[str]:
        return [type(m).__name__ for m in media_of(record, field, tmp_path, "r")]

    assert read({"image": "1.jpg"}) == read({"img": ["1.jpg"]}) == read({"images": [{"path": "1.jpg"}]}) == ["Image"]
    assert read({"image": ["1.jpg", "2.jpg"]}) == ["Image", "Image"]
    assert read({"image": "1.jpg", "video": "v.mp4"}) == ["Image", "Video"]
    assert read({"frames": ["1.jpg", "2.jpg"]}, "frames") == ["Video"]  # frames
    assert read({"videos": ["v.mp4", "v.mp4"]}) == ["Video", "Video"]
    assert read({"image": None, "images": []}) == []
    assert media_of({"image": {"bytes": b"abc", "path": None}}, "", tmp_path, "r") == [Image(b"abc")]
