from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.common.numbers import JSON_NUMBERS
from vlm.datasets.formats.table.head import elements
from vlm.datasets.formats.table.read import AllRows, read_rows

RECORDS = [{"question": "Color?", "answer": "red"}, {"question": "Two, or 'more'?", "answer": "four\nfive"}]


def write(file: Path, records: list[dict[str, Any]]) -> str:
    """The records in the format that the file's name asks for."""
    kind = file.suffix
    if kind == ".json":
        file.write_text(json.dumps(records))
    elif kind in (".jsonl", ".ndjson"):
        file.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    elif kind in (".csv", ".tsv"):
        import csv

        with file.open("w", newline="") as out:
            table = csv.DictWriter(out, list(records[0]), delimiter="," if kind == ".csv" else "\t")
            table.writeheader()
            table.writerows(records)
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(records), file)
    return str(file)


@pytest.mark.parametrize("kind", ["json", "jsonl", "ndjson", "csv", "tsv", "parquet"])
def test_the_same_records_in_every_file_format(tmp_path: Path, kind: str) -> None:
    rows = read_rows(write(tmp_path / f"a.{kind}", RECORDS))
    assert [rows.records[i] for i in range(len(rows.records))] == RECORDS
    assert rows.columns() == {"question", "answer"}


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"info": {}, "data": RECORDS}, ""),
        ({"data": RECORDS, "licences": [{"a": 1}]}, "data"),
        ({"all": {"deep": RECORDS}}, "all.deep"),
    ],
)
def test_a_list_inside_an_object(tmp_path: Path, tree: dict, key: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(tree))
    assert list(read_rows(str(tmp_path / "a.json"), key).records) == RECORDS


def test_an_object_of_ids(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"q1": RECORDS[0], "q2": {"id": "own", **RECORDS[1]}}))
    rows = read_rows(str(tmp_path / "a.json"))
    assert [r["id"] for r in rows.records] == ["q1", "own"]


def test_the_name_need_not_tell_the_kind(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("\n".join(map(json.dumps, RECORDS)))
    assert len(read_rows(str(tmp_path / "train.json"), file_type="jsonl").records) == 2


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfquestion,answer\nA?,b\n")
    assert read_rows(str(tmp_path / "a.csv")).columns() == {"question", "answer"}


def test_a_folder_of_images_with_texts_beside_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "b.PNG", "c.jpg", "deep/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("a red boat\n")
    (tmp_path / "b.json").write_text('{"text": "a house", "size": 3}')
    (tmp_path / "deep" / "d.txt").write_text("a dog")
    with caplog.at_level("WARNING"):
        rows = read_rows(str(tmp_path))
    assert list(rows.records) == [
        {"id": "a", "image": str(tmp_path / "a.jpg"), "text": "a red boat"},
        {"id": "b", "image": str(tmp_path / "b.PNG"), "text": "a house", "size": 3},
        {"id": "d", "image": str(tmp_path / "deep" / "d.webp"), "text": "a dog"},
    ]
    assert "1 images without a .txt or .json file are left out" in caplog.text


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_folder_of_images_with_metadata(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"metadata.{kind}", [{"file_name": "train/1.png", "text": "a star"}])
    (record,) = read_rows(str(tmp_path)).records
    assert (record["image"], record["text"]) == (str(tmp_path / "train" / "1.png"), "a star")


def test_saved_by_the_package_datasets(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    datasets = pytest.importorskip("datasets")
    image = datasets.Image()
    features = datasets.Features({"image": image, "images": [image], "answer": datasets.Value("string")})
    encoded = {"bytes": image_of(3), "path": None}
    data = {"image": [encoded], "images": [[encoded] * 2], "answer": ["a star"]}
    table = datasets.Dataset.from_dict(data, features=features)
    table.save_to_disk(str(tmp_path / "one"))
    (record,) = read_rows(str(tmp_path / "one")).records
    assert record == {"image": encoded, "images": [encoded] * 2, "answer": "a star"}
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(DataError, match="holds several splits\n  fix: name one: test, train"):
        read_rows(str(tmp_path / "two"))
    assert len(read_rows(str(tmp_path / "two" / "train")).records) == 1


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load(name: str, config: str | None, **options: Any) -> Any:
        asked.append((name, config, options))
        if name == "no/where":
            raise datasets.exceptions.DatasetNotFoundError("not there")
        return datasets.Dataset.from_list(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows("hf://owner/name?split=validation&config=small")
    assert [rows.records[i] for i in range(2)] == RECORDS
    assert rows.where(1) == "hf://owner/name?split=validation&config=small: record 1"
    assert asked == [("owner/name", "small", {"split": "validation", "revision": None})]
    with pytest.raises(DataError, match="hf://no/where cannot be loaded"):
        read_rows("hf://no/where")
    with pytest.raises(DataError, match="use split, config and revision only"):
        read_rows("hf://owner/name?part=train")


@pytest.mark.parametrize(
    ("path", "package"), [("a.parquet", "pyarrow"), ("hf://owner/name", "datasets"), ("saved", "datasets")]
)
def test_packages_that_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, package: str
) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"needs .*{package}\n  fix: pip install 'vlm-compose\[tables\]'"):
        read_rows(path if path.startswith("hf") else str(tmp_path / path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", None, r"table: no file .*a\.json\n  fix: check the path"),
        ("a.json", "", r"a\.json is empty"),
        ("a.json", "[]", "has no records"),
        ("a.json", "{oops", r"a\.json is not JSON"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', "is not JSON .*\n  fix: set build_info.file_type to jsonl"),
        ("a.json", "[1, 2]", "expected a list of objects .*, found list"),
        ("a.json", '{"x": [{}], "y": [{}]}', "found dict with keys x, y\n  fix: set build_info.records"),
        ("a.json", '{"q": {"a": 1}, "q": {"a": 2}}', "key 'q' occurs twice in one object"),
        ("a.jsonl", "{oops\n", r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", "\n[2]\n", r"a\.jsonl:2: expected an object, found list"),
        ("a.csv", "x,x\n1,2\n", r"a\.csv:1: 'x,x' is not a header"),
        ("a.csv", "x,y\n1\n", r"a\.csv:2: 1 cells, the header has 2"),
        ("a.csv", 'x,y\n1,"2\n', r"a\.csv:2: unexpected end of data"),
        ("a.csv", "x,y\n", "has no records"),
        (
            "a.csv",
            "x;y\n1;2\n",
            r"a\.csv:1: only one column 'x;y'; the separator seems to be ';'\n  fix: save it with commas",
        ),
        ("a.csv", "x\ty\n1\t2\n", r"the separator seems to be '\\t'\n  fix: set build_info.file_type to tsv"),
        (
            "a.txt",
            "x",
            r"unknown kind of file \(suffix .txt\)\n  fix: set build_info.file_type to one of json, jsonl, csv",
        ),
        ("a.parquet", "x", "cannot be read as Parquet"),
        ("a.parquet", None, r"no file .*a\.parquet"),
        ("a.json", b"\xff\xfe\xff", "cannot be read .*\n  fix: save it as UTF-8"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | bytes | None, words: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"x": "1"}\n{oops\n\n{"x": "2"}\n', r"a\.jsonl:2 is not JSON .*\n  fix: repair or remove it"),
        ("a.jsonl", '{"x": "1"}\r\n[2]\r\n{"x": "2"}', r"a\.jsonl:2: expected an object, found list"),
        ("a.csv", "x\n1\n7,8\n2\n", r"a\.csv:3: 2 cells, the header has 1\n  fix: .* needs quotes"),
    ],
)
def test_an_unreadable_line_is_one_bad_record(
    tmp_path: Path, name: str, content: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_text(content)
    rows = read_rows(str(tmp_path / name))
    assert f"{name}: 1 of 3 records cannot be read" in caplog.text
    assert list(rows.records.faults) == [1]
    assert (rows.records[0], rows.records[2], rows.columns()) == ({"x": "1"}, {"x": "2"}, {"x"})
    with pytest.raises(DataError, match=words):
        rows.records[1]


def test_an_unreadable_text_beside_a_image_is_one_bad_record(tmp_path: Path) -> None:
    for name, said in (("a.json", b'{"text": "a dog"}'), ("b.json", b"{"), ("c.txt", b"\xff"), ("d.txt", b" ")):
        (tmp_path / name).write_bytes(said)
        (tmp_path / name).with_suffix(".jpg").touch()
    rows = read_rows(str(tmp_path))
    assert rows.records[0]["text"] == "a dog"
    for k, words in ((1, r"b\.json is not JSON"), (2, r"c\.txt cannot be read"), (3, r"d\.txt is empty")):
        with pytest.raises(DataError, match=words):
            rows.records[k]


def test_a_listing_without_the_name_of_a_image(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg"}\n{"text": "x"}\n{\n')
    rows = read_rows(str(tmp_path))
    assert rows.records[0]["image"] == str(tmp_path / "a.jpg")
    for k, words in ((1, r"metadata\.jsonl:2: no field 'file_name'"), (2, r"metadata\.jsonl:3 is not JSON")):
        with pytest.raises(DataError, match=words):
            rows.records[k]


def test_several_files_as_one_list(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"x": 1}\n{oops\n')
    (tmp_path / "2.json").write_text('[{"x": 3}]')
    rows = AllRows(str(tmp_path / "*.json*"))
    assert (len(rows), rows[0][0], rows[2]) == (3, {"x": 1}, ({"x": 3}, f"{tmp_path}/2.json: record 0"))
    with pytest.raises(DataError, match=r"1\.jsonl:2 is not JSON"):
        rows[1]
    with pytest.raises(IndexError):
        rows[3]


@pytest.mark.parametrize(
    ("key", "words"), [("nope", "no key 'nope' \\(data\\)"), ("data.x", "no key 'x' \\(it is a list\\)")]
)
def test_a_key_that_is_not_there(tmp_path: Path, key: str, words: str) -> None:
    (tmp_path / "a.json").write_text('{"data": [{"a": 1}]}')
    with pytest.raises(DataError, match=words):
        read_rows(str(tmp_path / "a.json"), key)


def test_folders_without_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataError, match="1 images, none of them with a text\n  fix: put x.txt"):
        read_rows(str(tmp_path))
    (tmp_path / "metadata.csv").write_text("file,text\na.jpg,b\n")
    with pytest.raises(DataError, match=r"metadata\.csv has no column file_name \(it has file, text\)"):
        read_rows(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "[]", "[ ]", '[{"a": 1}]', ' [ {"a": [1, {}]} , {"b": "],[" } ]\n', '[{"a": 1}, 2, null, "x"]', "[1,2]", "{}",
        "[", "[1", "[1,", "[1,]", "[,1]", "[1,,2]", "[1 2]", "[1] x", "[]]", '[{"a": NaN}]', "[[[1]]]", "", "1",
        '["\\ud800"]',
    ],
)  # fmt: skip
def test_elements_of_a_list_are_those_of_the_whole_list(text: str) -> None:
    """A list is read element by element: the same values, and the same texts are refused."""
    try:
        whole = json.loads(text, **JSON_NUMBERS)
    except ValueError:
        whole = None
    if isinstance(whole, list):
        assert list(elements(text)) == whole
    else:
        with pytest.raises(ValueError):
            list(elements(text))
