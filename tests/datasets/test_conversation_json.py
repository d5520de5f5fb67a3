from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.common.types import Text
from vlm.datasets.formats.conversation_json import ConversationJson


def load(tmp_path: Path, records: Any, **options: Any) -> ConversationJson:
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records))
    return ConversationJson(ConversationJson.Config(ann_path=str(file), image_path="img", **options))


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[k % 2], "value": v} for k, v in enumerate(values)]


def show(data: ConversationJson, index: int = 0) -> list[list[str]]:
    return [
        [m.role, *(p.text if isinstance(p, Text) else f"[{p.source}]" for p in m.parts)] for m in data[index].messages
    ]


def test_all_turns_and_the_published_place_of_the_image(tmp_path: Path) -> None:
    record = {"id": 7, "image": "a.jpg", "conversations": turns("What is it?\n<image>", "A bus.", "Red?", "No.")}
    data = load(tmp_path, [record])
    assert show(data) == [
        ["user", "[img/a.jpg]", "What is it?"],
        ["assistant", "A bus."],
        ["user", "Red?"],
        ["assistant", "No."],
    ]
    assert data[0].id == "7"
    assert len(data) == 1
    assert show(load(tmp_path, [record], image_first=False))[0] == ["user", "What is it?", "[img/a.jpg]"]
    assert len(load(tmp_path, [record], first_pair_only=True)[0].messages) == 2


def test_several_images_in_several_turns(tmp_path: Path) -> None:
    record = {"image": ["a.jpg", "b.jpg"], "conversations": turns("<image>\nThis?", "Yes.", "And <image> that?", "No.")}
    assert show(load(tmp_path, [record], image_first=False)) == [
        ["user", "[img/a.jpg]", "This?"],
        ["assistant", "Yes."],
        ["user", "And ", "[img/b.jpg]", " that?"],
        ["assistant", "No."],
    ]


def test_without_marks_images_come_first(tmp_path: Path) -> None:
    assert show(load(tmp_path, [{"image": ["a.jpg", "b.jpg"], "conversations": turns("Same?", "No.")}]))[0] == [
        "user",
        "[img/a.jpg]",
        "[img/b.jpg]",
        "Same?",
    ]


def test_text_only_and_named_by_pattern(tmp_path: Path) -> None:
    record = {"id": "000012", "conversations": turns("Hi\nthere", "Yes\nno.")}
    assert show(load(tmp_path, [record])) == [["user", "Hi\nthere"], ["assistant", "Yes\nno."]]
    named = load(tmp_path, [record], image_pattern="COCO_train2014_{id}.jpg", drop_newlines=True)
    assert show(named) == [["user", "[img/COCO_train2014_000012.jpg]", "Hithere"], ["assistant", "Yes\nno."]]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"id": "a", "conversations": turns("<image> x", "y")}, "record a: 1 <image> placeholders but 0 images"),
        (
            {"image": "p", "conversations": turns("<image><image>", "y")},
            "record 0: 2 <image> placeholders but 1 images",
        ),
        ({"conversations": []}, "at least one turn"),
        ({"id": "b"}, "no field 'conversations'"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "unknown speaker 'robot'"),
        ({"conversations": [{"from": "gpt"}]}, "no field 'value'"),
        ({"conversations": turns("a", "b")[::-1]}, "turns must alternate user, assistant, found assistant, user"),
        ({"conversations": turns("a", " ")}, "turn 2: the answer is empty"),
        ({"conversations": turns("a", None)}, "turn 2: the value is null, expected a text"),
        ({"conversations": turns(None, "a")}, "turn 1: the value is null, expected a text"),
        ({"conversations": turns("a", {"x": 1})}, "turn 2: the value is dict, expected a text"),
        ({"conversations": turns("a", "b <image>")}, "an image in an answer"),
        ({"conversations": turns("a <video>", "b")}, "1 <image> placeholders but 0 images"),
    ],
)
def test_unusable_records_name_themselves(tmp_path: Path, record: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(tmp_path, [record])[0]


def test_the_file_must_be_a_list_of_objects(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a list of objects .*, found dict with keys a"):
        load(tmp_path, {"a": 1})


def test_several_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"id": name, "conversations": turns(f"{name}?", "x")}]))
    paths = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    data = ConversationJson(ConversationJson.Config(ann_path=paths))
    assert [data[i].id for i in range(len(data))] == ["a", "b"]
    assert data.record(1)["id"] == "b"
    with pytest.raises(DataError, match="no file missing.json"):
        ConversationJson(ConversationJson.Config(ann_path=[*paths, "missing.json"]))


def test_published_pairs_overlap(tmp_path: Path) -> None:
    record = {"image": "a.jpg", "conversations": turns("What?\n<image>", "A\nbus.", "Red?", "No.", "Big?", "Yes.")}
    assert show(load(tmp_path, [record], overlapping_pairs=True, drop_newlines=True)) == [
        ["user", "[img/a.jpg]", "What?"],
        ["assistant", "A\nbus."],
        ["user", "Abus."],
        ["assistant", "Red?"],
        ["user", "Red?"],
        ["assistant", "No."],
    ]


def test_the_last_answer_alone_can_be_what_is_trained(tmp_path: Path) -> None:
    record = {"image": "a.jpg", "conversations": turns("What is it?", "A bus.", "Red?", "No.")}
    assert load(tmp_path, [record], trained="last")[0].only_last
    assert not load(tmp_path, [record])[0].only_last
