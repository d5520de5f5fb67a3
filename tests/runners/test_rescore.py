"""Result files scored against their records, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm.cli.main import main
from vlm.common.errors import DataError
from vlm.runners.evaluate.rescore import rescore

RECORDS = [
    {"index": 3, "question": "What color is it?", "answer": ["red"], "class": "Color"},
    {"index": 1, "question": "How many are there?", "answer": ["2"], "class": "Counting"},
    {"index": 2, "question": "Is it a dog?", "answer": ["yes"], "class": "Others"},
]
SAID = {3: "It is red.", 1: "three", 2: "yes"}


def write(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    said = [{"index": k, "text_output": text} for k, text in SAID.items()]
    return write(tmp_path / "records.jsonl", RECORDS), write(tmp_path / "result.jsonl", said)


def test_published_result_file_is_scored(files: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    records, result = files
    out = Path(result).parent / "out"
    assert main(["eval", "--predictions", result, "--data", records, "--output", str(out)]) == 0
    assert "all              66.7%" in capsys.readouterr().out
    numbers = json.loads((out / "scores.json").read_text())
    assert numbers["by_type"] == {"Color": 1.0, "Counting": 0.0, "Others": 1.0} and numbers["count"] == 3
    assert rescore(records, [result], "exact").scores["overall"] == pytest.approx(1 / 3)


def test_several_files_are_several_runs(files: tuple[str, str]) -> None:
    records, result = files
    other = write(Path(result).parent / "b.jsonl", [{"index": k, "text_output": "2"} for k in (1, 2, 3)])
    numbers = rescore(records, [result, other]).scores
    assert numbers["runs"] == pytest.approx([2 / 3, 1 / 3]) and numbers["overall"] == pytest.approx(0.5)


def test_faults(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    records, result = files
    short = write(tmp_path / "short.jsonl", [{"index": 3, "text_output": "x"}, {"index": 9, "text_output": "y"}])
    with pytest.raises(DataError, match=r"2 of 3 records have no line \(first: 1\), 1 lines have no record \(first: 9"):
        rescore(records, [short])
    with pytest.raises(DataError, match="result.jsonl:1: no answer to compare with"):
        rescore(result, [result])
    with pytest.raises(DataError, match="records.jsonl:1: no index and text_output"):
        rescore(records, [records])
    with pytest.raises(DataError, match="index 3 occurs twice"):
        rescore([records, records], [result])
    twice = write(tmp_path / "twice.jsonl", [{"index": i, "text_output": "x"} for i in (3, "3")])
    with pytest.raises(DataError, match="twice.jsonl:2: a second line with index 3"):
        rescore(records, [twice])
    assert main(["eval", "--predictions", result]) == 2
    assert "--predictions needs the records" in capsys.readouterr().err
