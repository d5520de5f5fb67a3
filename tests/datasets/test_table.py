from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import ConfigError, DataError
from vlm.common.types import Image, Input, Sample, Text, Video
from vlm.datasets.formats.table.read import RecordFile
from vlm.datasets.formats.table.table import Table

QA = [
    {"id": "q1", "image": "1.png", "question": "Color?", "answer": "red", "type": "color"},
    {"question": "Two and two?", "answer": 4},
    {"id": "q3", "image": ["1.png", "2.png"], "question": "Same?", "answer": "no"},
]


def table(tmp_path: Path, records: list[dict[str, Any]], **options: Any) -> Table:
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, records)) + "\n")
    return Table(Table.Config(ann_path=str(file), image_path="img", **options))


def shown(sample: Sample) -> list[str]:
    """Role, images in brackets, texts; an input after a bar."""

    def one(part: Any) -> str:
        if isinstance(part, Text):
            return ("|" if isinstance(part, Input) else "") + part.text
        return f"[{part.source}]" if isinstance(part, Image) else f"<{part.source}>"

    return [f"{m.role}: " + " ".join(map(one, m.parts)) for m in sample.messages]


def draws(data: Table, index: int = 0, count: int = 400) -> Counter[str]:
    """How often each form of a sample is drawn."""
    return Counter(" ".join(shown(data.draw(index, random.Random(k)))) for k in range(count))


def test_own_data_with_nothing_to_say_about_it(tmp_path: Path) -> None:
    data = table(tmp_path, QA)
    assert [shown(data[i]) for i in range(len(data))] == [
        ["user: [img/1.png] Color?", "assistant: red"],
        ["user: Two and two?", "assistant: 4"],
        ["user: [img/1.png] [img/2.png] Same?", "assistant: no"],
    ]
    assert [data[i].id for i in range(3)] == ["q1", "1", "q3"]
    assert data.record(0)["type"] == "color"


def test_named_columns_and_templates(tmp_path: Path) -> None:
    record = {"n": "12", "url": "http://x/y.webp", "meta": {"q": "How?"}, "words": ["a", "b"], "right": 1, "note": None}
    data = table(
        tmp_path,
        [record],
        fields={"id": "n", "question": "meta.q"},
        image_pattern="{url.stem}_{n:04d}{url.suffix}",
        user="{question} {note}Choose {words:, }.",
        assistant="{words[right]} {{exactly}} {file.stem}",
    )
    assert shown(data[0]) == ["user: [img/y_0012.webp] How? Choose a, b.", "assistant: b {exactly} data"]
    assert data[0].id == "12"


def test_images_as_bytes_paths_and_none(tmp_path: Path) -> None:
    data = table(
        tmp_path, [{"image": None, "question": "a", "answer": "b"}, {"image": "", "question": "a", "answer": 1}]
    )
    assert [data[i].messages[0].media for i in range(2)] == [(), ()]
    values = (b"png", {"bytes": b"jpg", "path": None}, {"bytes": None, "path": "/abs/a.jpg"})
    records = [{"image": value, "question": "a", "answer": "b"} for value in values]
    data = table(tmp_path, QA)
    data._files = [RecordFile("in memory", records)]
    assert [data[i].messages[0].media[0].source for i in range(3)] == [b"png", b"jpg", "/abs/a.jpg"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_table_travels_to_loader_workers(tmp_path: Path, kind: str) -> None:
    data = table(tmp_path, [{"image": "a.png", "question": "?", "answer": list("abc")}], answer_choice="random")
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        records = [{"image": {"bytes": b"png", "path": None}, "question": "?", "answer": list("abc")}] * 3
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
        data = Table(Table.Config(ann_path=str(tmp_path / "a.parquet"), answer_choice="random"))
        assert data[1].messages[0].media == (Image(b"png"),)
    again = pickle.loads(pickle.dumps(data))
    assert [again.draw(0, random.Random(k)) for k in range(9)] == [data.draw(0, random.Random(k)) for k in range(9)]


def test_clips(tmp_path: Path) -> None:
    record = {"video": "a.mp4", "video_id": 7, "question": "What?", "answer": "run"}
    assert table(tmp_path, [record])[0].messages[0].parts[0] == Video("img/a.mp4")
    assert table(tmp_path, [record], video_pattern="vid{video_id}.avi")[0].messages[0].media == (Video("img/vid7.avi"),)


def test_images_stand_at_their_marks(tmp_path: Path) -> None:
    record = {"image": ["a", "b"], "question": "Is <image> older than <image>?", "answer": "yes"}
    assert shown(table(tmp_path, [record])[0])[0] == "user: Is  [img/a]  older than  [img/b] ?"


def test_a_caption_needs_no_question_and_blanks_of_a_text_stay(tmp_path: Path) -> None:
    data = table(tmp_path, [{"image": "a", "caption": " a boat"}], user="", assistant="{caption}")
    assert shown(data[0]) == ["user: [img/a]", "assistant:  a boat"]
    assert shown(table(tmp_path, [{"image": "a", "caption": "x"}], user="Photo of ", assistant="{caption}")[0])[0] == (
        "user: [img/a] Photo of "
    )


def test_questions_without_answers(tmp_path: Path) -> None:
    assert shown(table(tmp_path, [{"image": "a", "question": "What?"}], assistant=None)[0]) == ["user: [img/a] What?"]


def test_text_instructions_with_and_without_input(tmp_path: Path) -> None:
    records = [
        {"instruction": "Sum up.", "input": "A b c.", "output": "Abc."},
        {"instruction": "Rhyme.", "input": "", "output": "Time."},
        {"instruction": "Wait.", "output": "Yes."},
    ]
    data = table(tmp_path, records, fields={"question": "instruction", "answer": "output"}, input="{input}")
    assert [shown(data[i])[0] for i in range(3)] == ["user: Sum up. |A b c.", "user: Rhyme.", "user: Wait."]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("first", {"a": 400}), ("most_frequent", {"b": 400}), ("random", {"a": 100, "b": 200, "c": 100})],
)
def test_one_of_several_answers(tmp_path: Path, choice: Any, expected: dict[str, int]) -> None:
    data = table(tmp_path, [{"question": "?", "answer": ["a", "b", "c", "b"]}], answer_choice=choice)
    found = {k[-1]: n for k, n in draws(data).items()}
    assert found.keys() == expected.keys()
    assert all(abs(found[k] - n) < 40 for k, n in expected.items())


def test_the_first_of_equally_frequent_answers(tmp_path: Path) -> None:
    data = table(tmp_path, [{"question": "?", "answer": ["c", "a", "a", "c"]}], answer_choice="most_frequent")
    assert shown(data[0])[1] == "assistant: c"


def test_options_are_offered_half_of_the_time(tmp_path: Path) -> None:
    record = {"question": "?", "answer": ["2", "two", "2"]}
    data = table(tmp_path, [record, {"question": "?", "answer": ["no", "no"]}], options="answer", options_share=0.5)
    found = draws(data)
    assert found.keys() == {"user: ? assistant: 2", "user: ? |2, two assistant: 2"}
    assert abs(found["user: ? assistant: 2"] - 200) < 40
    assert draws(data, 1) == {"user: ? assistant: no": 400}
    fixed = table(tmp_path, [{"question": "?", "answer": "true"}], options=["true", "false"])
    assert shown(fixed[0])[0] == "user: ? |true, false"


def test_pools(tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("Is it?\n\nWhy {question}?\n")
    record = {"question": "blue", "answer": "yes"}
    data = table(tmp_path, [record], user=["{question} {ask}", "{ask}"], pools={"ask": str(tmp_path / "ask.txt")})
    asked = {k.removesuffix(" assistant: yes") for k in draws(data)}
    assert asked == {"user: blue Is it?", "user: Is it?", "user: blue Why blue?", "user: Why blue?"}
    shipped = table(tmp_path, [record], user="{ask}", pools={"ask": "describe.txt"})
    assert len(draws(shipped)) > 10


def test_draws_repeat_and_indexing_makes_one_choice(tmp_path: Path) -> None:
    data = table(tmp_path, [{"question": "?", "answer": list("abcdef")}], answer_choice="random")
    assert data.draw(0, random.Random(5)) == data.draw(0, random.Random(5))
    assert data[0] == data[0]


def test_where_keeps_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [{"question": f"{k}", "answer": "x", "split": s} for k, s in enumerate(["train", 1, "test", "train2"])]
    for wanted, expected in (("train", "0"), ("train*", "03"), ("1", "1"), (["test", 1], "12")):
        data = table(tmp_path, records, where={"split": wanted})
        assert "".join(data[i].messages[0].text for i in range(len(data))) == expected
    with caplog.at_level("INFO"):
        table(tmp_path, records, where={"split": "test"})
    assert "1 of 4 records have split=test" in caplog.text
    with pytest.raises(DataError, match=r"none of 4 records has split=val \(the first has \{'split': \['train'\]\}\)"):
        table(tmp_path, records, where={"split": "val"})


def test_parallel_lists(tmp_path: Path) -> None:
    records = [{"id": "a", "q": ["1?", "2?"], "a": ["one", "two"]}, {"q": ["3?"], "a": ["three"]}]
    fields = {"question": "q", "answer": "a"}
    data = table(tmp_path, records, fields=fields, explode=["q", "a"])
    assert [shown(data[i]) for i in range(len(data))] == [
        ["user: 1?", "assistant: one"],
        ["user: 2?", "assistant: two"],
        ["user: 3?", "assistant: three"],
    ]
    assert [data[i].id for i in range(3)] == ["a.0", "a.1", "2"]
    assert data.record(1) == {
        "id": "a",
        "q": "2?",
        "a": "two",
        "question": "2?",
        "answer": "two",
        "file": data._files[0].name,
    }
    one = table(tmp_path, records, fields=fields, explode=["q", "a"], one_at_random=True)
    assert len(one) == 2
    assert draws(one).keys() == {"user: 1? assistant: one", "user: 2? assistant: two"}


def test_lists_of_objects_add_their_fields(tmp_path: Path) -> None:
    data = table(tmp_path, [{"image": "a", "qas": [{"question": "1?", "answer": 1}, {"question": "2?", "answer": 2}]}],
                 explode=["qas"])  # fmt: skip
    assert shown(data[1]) == ["user: [img/a] 2?", "assistant: 2"]


def test_one_per_image_and_subset(tmp_path: Path) -> None:
    records = [{"image": f"{k // 4}", "question": f"{k}", "answer": "x"} for k in range(40)]
    one = table(tmp_path, records, one_per="{image}")
    assert [one.record(i)["image"] for i in range(10)] == [str(k) for k in range(10)]
    assert [one.record(i) for i in range(10)] != records[::4]
    some, same, other = (table(tmp_path, records, subset=7, seed=s) for s in (1, 1, 2))
    ids = [[d.record(i)["question"] for i in range(len(d))] for d in (some, same, other)]
    assert len(set(ids[0])) == 7
    assert ids[0] == ids[1] != ids[2]
    assert len(table(tmp_path, records, subset=99)) == 40


def test_images_that_are_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "there.png").touch()
    records = [{"image": str(tmp_path / n), "question": "?", "answer": "x"} for n in ("there.png", "gone.png")]
    assert len(table(tmp_path, records)) == 2
    with caplog.at_level("INFO"):
        assert len(table(tmp_path, records, missing_images="drop")) == 1
    assert "1 of 2 records left out, their image is missing: " in caplog.text
    with pytest.raises(DataError, match="the image of every record is missing, the first is .*gone"):
        table(tmp_path, records[1:], missing_images="drop")


def test_two_images_joined_and_exchanged(tmp_path: Path) -> None:
    record = {"image": ["a", "b"], "question": "Left is bright, the right one leftover.", "answer": "true"}
    data = table(tmp_path, [record], join_images=True, flip_share=0.25)
    found = Counter((s.messages[0].media[0].source, s.messages[0].text) for s in (
        data.draw(0, random.Random(k)) for k in range(400)))  # fmt: skip
    swapped = (("img/b", "img/a"), "Right is bright, the left one leftover.")
    assert found.keys() == {(("img/a", "img/b"), record["question"]), swapped}
    assert abs(found[swapped] - 100) < 40
    with pytest.raises(DataError, match="flip_share needs two images, found 1"):
        table(tmp_path, [{**record, "image": "a"}], flip_share=1.0)[0]


def test_turns(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "<image>\nWho?"},
             {"role": "assistant", "content": "A cat."}]  # fmt: skip
    parts = [{"from": "human", "value": [{"type": "text", "text": "Look: "}, {"type": "image"}]},
             {"from": "gpt", "value": "Yes."}]  # fmt: skip
    data = table(tmp_path, [{"images": "a", "chat": turns}, {"images": "b", "chat": parts}],
                 fields={"image": "images"}, messages="chat")  # fmt: skip
    assert shown(data[0]) == ["system: Be kind.", "user: [img/a] Who?", "assistant: A cat."]
    assert shown(data[1]) == ["user: Look:  [img/b]", "assistant: Yes."]


def test_the_text_processor_cleans_fields_before_the_template(tmp_path: Path) -> None:
    data = table(tmp_path, [{"question": "WHAT?", "answer": ["RED"]}], user="[vqa] About: {question}",
                 text_fields=["question", "answer"])  # fmt: skip
    assert shown(data[0]) == ["user: [vqa] About: WHAT?", "assistant: RED"]
    data.clean = str.lower
    assert shown(data[0]) == ["user: [vqa] About: what?", "assistant: red"]


def test_several_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"question,answer\n{name}?,x\n")
    data = Table(Table.Config(ann_path=[str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]))
    assert [data[i].messages[0].text for i in range(2)] == ["a?", "b?"]
    assert len(Table(Table.Config(ann_path=str(tmp_path / "*.csv")))) == 2
    with pytest.raises(DataError, match="no file .*x.csv"):
        Table(Table.Config(ann_path=str(tmp_path / "*x.csv")))


@pytest.mark.parametrize(
    ("record", "options", "words"),
    [
        ({"question": "?"}, {}, "a template names 'answer', but the columns are question\n  fix: set build_info.f"),
        ({"q": "?", "answer": 1}, {"fields": {"question": "que"}}, "fields names 'que', but the columns are answer, q"),
        (QA[0], {"where": {"splitt": 1}}, "where names 'splitt'"),
        (QA[0], {"explode": ["x"]}, "explode names 'x'"),
        (QA[0], {"messages": "chat"}, "messages names 'chat'"),
        (QA[0], {"options": "choices"}, "options names 'choices'"),
        (QA[0], {"image_pattern": "{img}.jpg"}, "names 'img'"),
        (QA[0], {"user": "{question"}, "template '{question': .*\n  fix: write {{ and }}"),
        (QA[0], {"pools": {"ask": "nope.txt"}}, r"pools.ask: no file nope.txt\n.*shipped pool \(describe.txt"),
        (QA[0], {"pools": {"ask": []}}, "pools.ask: no text to draw from"),
    ],
)
def test_options_that_do_not_fit_the_file(tmp_path: Path, record: dict, options: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        table(tmp_path, [record], **options)


def test_a_csv_file_without_header_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a.jpg,What?,red\n")
    (tmp_path / "b.csv").write_text("a.jpg,What?,red\nb.jpg,Who?,a man\n")
    with pytest.raises(DataError, match="has no records"):
        Table(Table.Config(ann_path=str(tmp_path / "a.csv")))
    with pytest.raises(DataError, match="columns are What\\?, a.jpg, red; the first line of a CSV file must name them"):
        Table(Table.Config(ann_path=str(tmp_path / "b.csv")))


@pytest.mark.parametrize(
    ("record", "options", "words"),
    [
        ({"question": "?"}, {}, r"data.jsonl:1: no field 'answer' \(it has .*question"),
        ({"question": "?", "answer": " "}, {}, "data.jsonl:1: the answer is empty\n  fix: remove the record"),
        ({"question": "?", "answer": None}, {}, "the answer is empty"),
        ({"question": "?", "answer": []}, {}, "the list of answers is empty"),
        ({"question": " ", "answer": "x"}, {}, "neither a question nor an image"),
        ({"question": "?", "answer": [{"a": 1}]}, {}, r"answers must be texts, found \{'a': 1\}"),
        ({"question": {"a": 1}, "answer": "x"}, {}, "an object in a template\n  fix: name a text inside it"),
        (
            {"type": [{"role": "user", "content": "x"}, {"role": "gpt", "content": ""}]},
            {"messages": "type"},
            "turn 2: the answer is empty",
        ),
        ({"question": "<image>?", "answer": "x"}, {}, "1 <image> placeholders but 0 images\n  fix: name the field"),
        ({"question": "?", "answer": "Here: <image>"}, {}, "data.jsonl:1: an image in an answer"),
        ({"question": "?", "answer": ["a <video>"]}, {}, "an image in an answer"),
        ({"question": "?", "answer": "x", "c": "<image>"}, {"input": "{c}"}, "an image in the input"),
        ({"question": ["?"], "answer": "x"}, {}, "a list in a template\n  fix: say how to join it"),
        ({"image": 7, "question": "?", "answer": "x"}, {}, "a int is not an image\n  fix: give a path"),
        (
            {"image": "http://a/b.jpg", "question": "?", "answer": "x"},
            {},
            "http://a/b.jpg is a URL\n  fix: download",
        ),
        ({"question": "?", "answer": "x"}, {"fields": {"image": "image"}}, "no field 'image'"),
        ({"question": "?", "answer": "x", "type": "y"}, {"options": "type"}, "options must be a list, found str"),
        ({"question": "?", "answer": "x", "type": "y"}, {"image_pattern": "{type:03d}"}, "'y' does not fit {:03d}"),
        ({"question": "?", "answer": "{", "type": ["a"]}, {"user": "{type[3]}"}, "no element '3' in a list of 1"),
        ({"question": "?", "answer": "x", "type": {"a": 1}}, {"user": "{type.b}"}, r"no 'b' \(there are a\)"),
        ({"question": "?", "answer": "x", "type": 3}, {"user": "{type.b}"}, "int has no 'b'"),
        ({"question": "?", "answer": "x", "type": []}, {"messages": "type"}, "at least one turn, found an empty list"),
        ({"answer": "x", "type": [{"role": "robot", "content": "x"}]}, {"messages": "type"}, "turn 1: unknown speaker"),
        ({"type": [{"role": "user"}]}, {"messages": "type"}, "turn 1: no field 'value' or 'content'"),
        ({"type": ["x"]}, {"messages": "type"}, "turn 1: found str, expected an object"),
        ({"type": [{"role": "user", "content": [{"type": "audio"}]}]}, {"messages": "type"}, "a part of type 'audio'"),
        (
            {"type": [{"role": "gpt", "content": "x"}]},
            {"messages": "type"},
            "must alternate .*, found assistant\n  fix",
        ),
        ({"type": [{"role": "user", "content": "x"}] * 2}, {"messages": "type"}, "found user, user"),
        (
            {"type": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]},
            {"messages": "type"},
            "a system text after the first turn",
        ),
    ],
)
def test_records_that_cannot_be_used_say_why(tmp_path: Path, record: dict, options: dict, words: str) -> None:
    data = table(tmp_path, [record, QA[0]], **options)
    with pytest.raises(DataError, match=words):
        data[0]


def test_parallel_lists_of_different_length(tmp_path: Path) -> None:
    records = [{"question": ["1"], "answer": ["a", "b"]}]
    with pytest.raises(
        DataError, match=r"data.jsonl:1: expected lists of equal length, found \{'question': 1, 'answer'"
    ):
        table(tmp_path, records, explode=["question", "answer"])
    data = table(tmp_path, [*records, {"question": ["2"], "answer": ["b"]}], explode=["question", "answer"])
    assert len(data) == 2
    with pytest.raises(DataError, match="data.jsonl:1: expected lists of equal length"):
        data[0]
    assert shown(data[1]) == ["user: 2", "assistant: b"]
    empty = table(tmp_path, [{"question": [], "answer": []}], explode=["question", "answer"], one_at_random=True)
    with pytest.raises(DataError, match="data.jsonl:1: the lists of question, answer are empty"):
        empty[0]
    with pytest.raises(DataError, match="no sample is left"):
        table(tmp_path, [{"question": [], "answer": []}], explode=["question", "answer"])


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="input and options both fill the input"):
        Table.Config(ann_path="a", input="{x}", options=["a"])
    with pytest.raises(ConfigError, match="one_at_random needs"):
        Table.Config(ann_path="a", one_at_random=True)
    with pytest.raises(ConfigError, match="need at least one text"):
        Table.Config(ann_path="a", user=[])


def test_a_text_processor_leaves_empty_fields_empty(tmp_path: Path) -> None:
    data = table(tmp_path, [{"image": "a", "question": None, "answer": "B"}], text_fields=["question", "answer"])
    data.clean = str.lower
    assert shown(data[0]) == ["user: [img/a]", "assistant: b"]


@pytest.mark.parametrize(
    "options",
    [{}, {"where": {"kind": "k"}}, {"one_per": "{image}"}, {"explode": ["words"]}, {"missing_images": "drop"}],
)
def test_an_unreadable_line_stays_for_the_quarantine(tmp_path: Path, options: dict) -> None:
    (tmp_path / "1.png").touch()
    record = {"image": "1.png", "question": "Q?", "answer": "a", "kind": "k", "words": ["x"]}
    (tmp_path / "a.jsonl").write_text(f"{{oops\n{json.dumps(record)}\n")
    data = Table(Table.Config(ann_path=str(tmp_path / "a.jsonl"), image_path=str(tmp_path), **options))
    assert len(data) == 2
    found = []
    for k in range(2):
        try:
            found.append(data[k].id)
        except DataError as error:
            found.append(str(error))
    assert sum("a.jsonl:1 is not JSON" in f for f in found) == 1


def test_images_that_no_option_refers_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = {"image_id": "1", "question": "Q?", "answer": "a"}
    file = tmp_path / "a.json"
    for fields, folder, said in (
        ({}, "", "fix: set build_info.fields: {image: image_id}"),
        (
            {"question": "answer"},
            "img",
            "text only, because no field is named image or video; the fields are answer, image_id",
        ),
        ({"image": "image_id"}, "img", ""),
    ):
        caplog.clear()
        file.write_text(json.dumps([record]))
        Table(Table.Config(ann_path=str(file), fields=fields, image_path=folder))
        assert said in caplog.text if said else not caplog.text


def test_marks_without_images_tell_where_to_name_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1 <image> placeholders but 0 images\n  fix: name the field .*build_info.fields"
    ):
        table(tmp_path, [{"question": "<image>Q?", "answer": "a"}])[0]
