from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm.common.errors import DataError
from vlm.datasets.qa_jsonl import QaJsonl

RECORDS = [
    {"id": "q1", "image": "1.png", "question": "Color?", "answer": "red", "type": "color"},
    {"question": "Two and two?", "answer": 4},
    {"id": "q3", "image": ["1.png", "2.png"], "question": "Same?", "answer": "no"},
]


@pytest.mark.parametrize("name", ["qa.jsonl", "qa.json"])
def test_lines_or_a_list(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    lines = "\n".join(map(json.dumps, RECORDS)) + "\n\n"
    file.write_text(lines if name.endswith("l") else json.dumps(RECORDS))
    data = QaJsonl(QaJsonl.Config(ann_path=str(file), image_path="img"))
    assert len(data) == 3
    assert [[m.source for m in data[i].messages[0].media] for i in range(3)] == [
        ["img/1.png"],
        [],
        ["img/1.png", "img/2.png"],
    ]
    assert [data[i].messages[1].text for i in range(3)] == ["red", "4", "no"]
    assert [data[i].id for i in range(3)] == ["q1", "1", "q3"]
    assert data.record(0)["type"] == "color"


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_text(json.dumps(RECORDS[0]) + "\n{oops\n")
    with pytest.raises(DataError, match=r"qa\.jsonl:2 is not JSON"):
        QaJsonl(QaJsonl.Config(ann_path=str(file)))


def test_a_record_without_answer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_text('{"id": "x", "question": "?"}\n')
    with pytest.raises(DataError, match="record x: no field 'answer'"):
        QaJsonl(QaJsonl.Config(ann_path=str(file)))[0]
