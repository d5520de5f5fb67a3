"""Conversion scripts under dataset/."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlm.datasets.formats.table.table import Table

FOLDER = Path(__file__).resolve().parents[2] / "dataset"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(file: Path, tree: Any) -> str:
    file.write_text(json.dumps(tree, ensure_ascii=False, indent=1), encoding="utf-8")
    return str(file)


def rows(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream, delimiter="\t"))


def test_captions_become_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one = [
        {"caption": "a boat\ton\nthe river", "url": "http://x/1.jpg", "more": 1},
        {"caption": 'a "red" house', "url": "http://x/2.jpg"},
        {"caption": "no address"},
        {"caption": "", "url": "http://x/3.jpg"},
        "nothing",
    ]
    two = [{"url": "http://x/1.jpg", "caption": "又一次"}]
    files = [write(tmp_path / "a.json", one), write(tmp_path / "b.json", two)]
    out = tmp_path / "out.tsv"
    assert script("captions_to_tsv").main([*files, str(out)]) == 0
    assert rows(out) == [
        ["url", "caption"],
        ["http://x/1.jpg", "a boat on the river"],
        ["http://x/2.jpg", 'a "red" house'],
        ["http://x/1.jpg", "又一次"],
    ]
    assert "3 rows, 3 records left out" in capsys.readouterr().out
    script("captions_to_tsv").main([*files, str(out), "--unique"])
    assert len(rows(out)) == 3
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_lists_are_read_piece_by_piece(piece: int) -> None:
    tree = [{"url": "u", "caption": 'a "]," b'}, 12345, [1, {"x": "}"}], "船", {}]
    for indent in (None, 2):
        text = json.dumps(tree, indent=indent)
        assert list(script("captions_to_tsv").records(io.StringIO(text), "x", piece)) == tree
    assert list(script("captions_to_tsv").records(io.StringIO(" [ ] "), "x", piece)) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}', "expected a JSON list"),
        ('[{"url": "u"}, {"ur', "cut off after 1 records"),
        ("[{'url': 1}]", "damaged or cut off after 0"),
        ("", "cut off after 0"),
        ("[", "cut off after 0"),
    ],
)
def test_damaged_lists(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SystemExit, match=said):
        script("captions_to_tsv").main([str(tmp_path / "a.json"), str(tmp_path / "o.tsv")])
    assert not (tmp_path / "o.tsv").exists()


def test_other_names_of_fields(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", [{"image_url": "u", "text": "t"}])
    with pytest.raises(SystemExit, match="no record has text in both 'url' and 'caption'; see --url and --caption"):
        script("captions_to_tsv").main([file, str(tmp_path / "o.tsv")])
    script("captions_to_tsv").main([file, str(tmp_path / "o.tsv"), "--url", "image_url", "--caption", "text"])
    assert rows(tmp_path / "o.tsv")[1] == ["u", "t"]
    with pytest.raises(SystemExit, match="no file"):
        script("captions_to_tsv").main([str(tmp_path / "no.json"), str(tmp_path / "o.tsv")])


def test_official_questions_become_a_list(tmp_path: Path) -> None:
    asked = {"questions": [{"question_id": 9000, "image_id": 9, "question": "What?"}]}
    notes = {"annotations": [{"question_id": 9000, "answers": [{"answer": "boat"}, {"answer": "ship"}]}]}
    arguments = ["--questions", write(tmp_path / "q.json", asked), "--annotations", write(tmp_path / "a.json", notes)]
    out = tmp_path / "vqa.json"
    script("vqa_to_list").main([*arguments, "--split", "train2014", str(out)])
    image = "train2014/COCO_train2014_000000000009.jpg"
    assert json.loads(out.read_text()) == [
        {"question_id": 9000, "image": image, "question": "What?", "answer": ["boat", "ship"]}
    ]
    options = {"ann_path": str(out), "image_path": "/coco", "fields": {"id": "question_id"}, "answer_choice": "random"}
    sample = Table(Table.Config(**options))[0]
    assert sample.messages[0].media[0].source == f"/coco/{image}"
    write(tmp_path / "a.json", {"annotations": []})
    with pytest.raises(SystemExit, match="1 of 1 questions have no annotation, the first is 9000"):
        script("vqa_to_list").main([*arguments, "--split", "train2014", str(out)])
    write(tmp_path / "a.json", [])
    with pytest.raises(SystemExit, match="has no list 'annotations'"):
        script("vqa_to_list").main([*arguments, "--split", "train2014", str(out)])
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(SystemExit, match="is not JSON"):
        script("vqa_to_list").main([*arguments, "--split", "train2014", str(out)])
