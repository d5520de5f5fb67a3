"""Files and answers that are not as they should be: one message each, and no number from what was misread."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import DataError, UserError
from vlm.common.registry import resolve
from vlm.common.types import Image, Message
from vlm.tasks.answers import Answer, AnswerParts
from vlm.tasks.benchmarks.base import NOTHING, stamps_of
from vlm.tasks.benchmarks.standard.base import StandardOptions
from vlm.tasks.benchmarks.standard.items import Item
from vlm.tasks.benchmarks.standard.stored import read_answers, score_file
from vlm.tasks.benchmarks.standard.yes_no.pope import Pope

from .answered import written

LINE = {"question_id": 1, "image": "a.jpg", "text": "A dog?", "label": "yes"}
STORED = Pope.spec().answers


def opened(folder: Path, benchmark: str, name: str, content: str) -> Any:
    (folder / name).write_text(content)
    return resolve("benchmark", benchmark).open(str(folder), "", StandardOptions())


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "message"),
    [
        ("pope", "coco_pope_random.json", "[" * 100_000, "nested too deeply"),
        ("pope", "coco_pope_random.json", json.dumps(LINE | {"label": "maybe"}), "question 1: label 'maybe'"),
        ("pope", "coco_pope_random.json", json.dumps(LINE | {"text": None}), "question 1: found None, expected a text"),
        ("pope", "coco_pope_random.json", json.dumps(LINE | {"text": "\ud800"}), "half a character"),
        ("vizwiz", "val.json", '[{"image": "a.jpg", "question": 5, "answers": ["x"]}]', "found 5, expected a text"),
        (
            "textcaps",
            "TextCaps_0.1_val.json",
            '{"data": [{"image_id": 1, "caption_str": null}]}',
            "caption None is not",
        ),
    ],
)
def test_odd_annotations_are_one_message(tmp_path: Path, benchmark: str, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(tmp_path, benchmark, name, content)


def test_a_table_with_an_endless_field_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = csv.field_size_limit(1000)
    monkeypatch.setattr("csv.field_size_limit", lambda size: before)
    try:
        with pytest.raises(DataError, match="val.csv: not a table .field larger than field limit"):
            opened(tmp_path, "next_qa", "val.csv", f"video,question\n1,{'x' * 1001}\n")
    finally:
        monkeypatch.undo()
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([5], "found 5 in place of an answer"),
        ([["a", "b"]], "found 'a' in place of an answer"),
        ([{"question_id": 1, "answer": ["yes"]}], r"1: \['yes'\] is not an answer"),
        ([{"question_id": 1, "answer": "a"}, {"question_id": 1.0, "answer": "b"}], "two answers to 1\n"),
        ([{"id": 1, "seed": s, "answer": "a"} for s in (0, 1)], "(?s)two answers to 1.*each seed to a file of its own"),
    ],
)
def test_odd_answers_are_one_message(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_answers(str(written(tmp_path / "a.jsonl", lines)), STORED)


def test_answers_that_are_not_there_or_nested_without_end_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name, message in (("none.jsonl", "no such file"), (".", "no such file"), ("deep.json", "nested too deeply")):
        with pytest.raises(DataError, match=message):
            read_answers(str(tmp_path / name), STORED)
    with pytest.raises(DataError, match="no such file"):
        score_file(resolve("benchmark", "iconqa"), *_iconqa(tmp_path), [str(tmp_path / "x.json")], StandardOptions())


def _iconqa(folder: Path) -> tuple[str, str]:
    record = {"image_id": "1", "question": "Which?", "choices": ["a", "b"], "answer": 1}
    (folder / "choose_text_val.json").write_text(json.dumps([record]))
    return str(folder), ""


def test_ids_and_answers_of_any_type(tmp_path: Path) -> None:
    rows = [{"id": 1.0, "answer": None}, {"id": "2", "answer": 5}, {"id": 3, "answer": "a \ud800"}]
    found = read_answers(str(written(tmp_path / "a.jsonl", rows)), STORED)
    assert found == {"1": "", "2": "5", "3": "a ?"}
    assert found["1"].error == NOTHING and not found["2"].error


def test_several_runs_with_an_error_score_the_questions_that_all_runs_have() -> None:
    mmbench = resolve("benchmark", "mmbench")
    fields = {"type": "t", "category": "c", "hint": ""}
    items = [
        Item(str(k + turn * 1_000_000), "q", (), "AB"[turn], {**fields, "unit": str(k)}, ("x", "y"))
        for k in range(3)
        for turn in (0, 1)
    ]
    right = [Answer(item.references) for item in items]
    runs = [[right[0], Answer("", "crash"), *right[2:]], [Answer("B"), Answer("", "crash"), *right[2:]]]
    found = mmbench.score(items, runs, StandardOptions(seeds=[0, 1]))
    assert found.scores["metrics"]["circular"] == 1.0 and list(found.metrics[0].units) == ["1", "2"]


def test_groups_of_any_type_are_texts() -> None:
    items = [Item(str(k), "q", (), "yes", {"type": kind}) for k, kind in enumerate((3, "a", None, [1]))]
    found = resolve("benchmark", "msvd_qa").score(items, [[Answer("yes")] * 4], StandardOptions())
    assert list(found.scores["by_group"]["accuracy"]) == ["3", "[1]", "a"]


def test_answers_of_another_model_are_never_mixed_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "evaluation_pope_right"
    first = AnswerParts(file, "one")
    first.add({"a": "yes"})
    second = AnswerParts(file, "two", replace_strange=True)
    first.add({"b": "yes"})
    second.add({"c": "no"})
    assert AnswerParts(file, "two").done == {"c": "no"} and first.done == {"a": "yes", "b": "yes"}
    assert "another command writes to the same folder" in caplog.text
    first.remove()
    second.remove()


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = AnswerParts(tmp_path / "x", "one")
    full = OSError(28, "No space left on device")

    def open_full(*_: Any, **__: Any) -> Any:
        raise full

    monkeypatch.setattr("vlm.tasks.answers._head", lambda _: parts._head)
    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(UserError, match="cannot be written .No space left"):
        parts.add({"a": "b"})


def test_a_changed_image_is_another_question(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    asked = [Message("user", [Image(str(file)), "what?"])]
    before = stamps_of(asked)
    file.write_bytes(b"another")
    assert stamps_of(asked) != before and stamps_of([Message("user", [Image(str(tmp_path / "b.png"))])]) == [None]
