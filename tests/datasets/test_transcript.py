from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.datasets.formats.transcript import Transcript

TEXT = "The talk of two.\n[|Human|] Why do\nbirds sing?\n[|AI|] To call.\nOften.\n"
TEXT += "[|Human|] When?\n[|AI|] At dawn.\n[|Human|] "


def load(tmp_path: Path, text: Any, **options: Any) -> Transcript:
    (tmp_path / "t.json").write_text(json.dumps([{"id": "a", "input": text}]))
    return Transcript(Transcript.Config(ann_path=str(tmp_path / "t.json"), **options))


def said(data: Transcript) -> list[tuple[str, str]]:
    return [(m.role, m.text) for m in data[0].messages]


def test_turns_of_a_transcript(tmp_path: Path) -> None:
    data = load(tmp_path, TEXT)
    assert said(data) == [
        ("user", "Why do\nbirds sing?"),
        ("assistant", "To call.\nOften."),
        ("user", "When?"),
        ("assistant", "At dawn."),
    ]
    assert (len(data), data[0].id, data.record(0)["id"]) == (1, "a", "a")


def test_the_published_form_deletes_newlines(tmp_path: Path) -> None:
    assert said(load(tmp_path, TEXT, drop_newlines=True))[:2] == [
        ("user", "Why dobirds sing?"),
        ("assistant", "To call.Often."),
    ]


@pytest.mark.parametrize("end", ["", "\n[|Human|]", "\n[|Human|] Bye."])
def test_the_last_turn_may_be_open_or_answered(tmp_path: Path, end: str) -> None:
    assert said(load(tmp_path, "[|Human|]Hi\n[|AI|]Ho" + end)) == [("user", "Hi"), ("assistant", "Ho")]


def test_other_marks(tmp_path: Path) -> None:
    data = load(tmp_path, "Q: Hi A: Ho", human="Q:", assistant="A:")
    assert said(data) == [("user", "Hi"), ("assistant", "Ho")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "record a: no question with an answer\n  fix: remove the record"),
        ("[|Human|] only", "no question with an answer"),
        (
            "[|Human|] a\n[|Human|] b\n[|AI|] c",
            r"turn 1: 0 labels '\[\|AI\|\]' after '\[\|Human\|\]', expected 1",
        ),
        ("[|Human|] a\n[|AI|] b\n[|AI|] c", "turn 1: 2 labels"),
        ("[|Human|] \n[|AI|] b", "turn 1: empty question"),
        ("[|Human|] a\n[|AI|] ", "turn 1: empty answer"),
    ],
)
def test_transcripts_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(tmp_path, text)[0]


def test_a_record_without_the_text(tmp_path: Path) -> None:
    data = load(tmp_path, TEXT, field="text")
    with pytest.raises(DataError, match=r"no field 'text' \(it has id, input\)"):
        data[0]
