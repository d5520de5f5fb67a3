"""The folder of feedback: its records, its images, and what is told where nothing can be kept."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from vlm.cli.main import main
from vlm.common.errors import DataError, UserError
from vlm.common.types import Image, Message, Text
from vlm.config.tree import parse_file
from vlm.datasets.formats.conversation_json import ConversationJson
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION
from vlm.serve.feedback import folder as module
from vlm.serve.feedback.folder import FeedbackFolder
from vlm.serve.feedback.record import Rating, fault_of, record_of
from vlm.serve.gradio import rating as page
from vlm.serve.gradio.events import Events, Models, template_option
from vlm.serve.gradio.rating import Ratings

from ..inference.small import CASE, write_config

IMAGE = CASE / "image.png"
ASKED = (Message("user", (Image(str(IMAGE)), Text("What is it?"))),)
DIALOGUE = (*ASKED, Message("assistant", "a cat"), Message("user", "Its color?"))


def record(key: str, thumb: bool | None = True, correction: str = "", **more: Any) -> dict[str, Any]:
    given, answer = more.pop("given", ASKED), more.pop("answer", "a cat")
    return record_of(Rating(key, thumb, correction), given, answer, EVALUATION, {"model": "m"}, **more)


def records(folder: FeedbackFolder) -> list[dict[str, Any]]:
    lines = [line for file in sorted(folder.path.glob("answers-*.jsonl")) for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def dataset(folder: FeedbackFolder) -> ConversationJson:
    entry = parse_file(folder.path / "config.yaml").data["datasets"]["feedback"]
    return ConversationJson(ConversationJson.Config(**entry["build_info"]))


def test_a_folder_is_a_dataset_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = FeedbackFolder(tmp_path / "f")
    system = Message("system", "Be brief.")
    folder.keep(record("1"), [Image(str(IMAGE))])
    folder.keep(record("2", thumb=False), [Image(str(IMAGE))])
    folder.keep(
        record("3", thumb=False, correction="grey", given=(system, *DIALOGUE), answer="red"), [Image(str(IMAGE))]
    )
    with caplog.at_level("INFO"):
        data = dataset(folder)
    assert "1 of 3 records left out" in caplog.text
    assert [sample.id for sample in map(data.__getitem__, range(len(data)))] == ["1", "3"]
    assert [m.text for m in data[1].messages] == ["Be brief.", "What is it?", "a cat", "Its color?", "grey"]
    assert data[1].only_last and [len(m.media) for m in data[1].messages] == [0, 1, 0, 0, 0]
    stored = data[0].messages[0].media[0].source
    assert Path(stored).read_bytes() == IMAGE.read_bytes() and Path(stored).parent == folder.path / "images"
    assert len(list((folder.path / "images").iterdir())) == 1
    assert [r["verdict"] for r in records(folder)] == ["up", "down", "corrected"]
    assert records(folder)[2]["answer"] == "red" and records(folder)[2]["generation"]["num_beams"] == 1


def test_media_stay_at_their_places_between_the_words(tmp_path: Path) -> None:
    image = Image(str(IMAGE))
    parts = (image, image, Text("Is "), image, Text("like\n\nthe others?"))
    folder = FeedbackFolder(tmp_path)
    folder.keep(record("1", given=(Message("user", parts),)), [image] * 3)
    found = dataset(folder)[0].messages[0].parts
    assert [p.text if isinstance(p, Text) else "image" for p in found] == [
        "image",
        "image",
        "Is ",
        "image",
        "like\n\nthe others?",
    ]


def test_a_later_rating_replaces_the_former_and_one_taken_back_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "RECORDS", 2)
    folder, other = FeedbackFolder(tmp_path), FeedbackFolder(tmp_path)
    for key in "123":
        folder.keep(record(key), [Image(str(IMAGE))])
    other.keep(record("4"), [Image(str(IMAGE))])
    folder.keep(record("1", correction="a dog"), [Image(str(IMAGE))])
    assert sorted((r["id"], r["verdict"]) for r in records(folder)) == [
        ("1", "corrected"),
        ("2", "up"),
        ("3", "up"),
        ("4", "up"),
    ]
    for key in "1123":
        folder.drop(key)
    assert [r["id"] for r in records(folder)] == ["4"] and len(list((tmp_path / "images").iterdir())) == 1
    other.drop("4")
    assert list(tmp_path.glob("*.jsonl")) == [] and list((tmp_path / "images").iterdir()) == []


def test_files_of_others_in_the_folder_are_in_no_way(tmp_path: Path) -> None:
    folder = FeedbackFolder(tmp_path)
    folder.keep(record("1"), [Image(str(IMAGE))])
    (stored,) = (tmp_path / "images").iterdir()
    (tmp_path / "answers-of-another.jsonl").write_bytes(b"\xff\xfe " + stored.name.encode())
    folder.drop("1")
    assert stored.exists(), "another file names it"
    (tmp_path / "answers-of-another.jsonl").unlink()
    folder.keep(record("2", answer=f"{'0' * 32}.png ../../{stored.name}"), [Image(str(IMAGE))])
    folder.drop("2")
    assert not stored.exists() and sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "images"]


def test_threads_and_pages_tear_no_line(tmp_path: Path) -> None:
    folders = [FeedbackFolder(tmp_path) for _ in range(2)]

    def rate(name: str) -> None:
        for k in range(12):
            for thumb in (True, False):
                folders[k % 2].keep(record(f"{name}{k}", thumb))

    threads = [threading.Thread(target=rate, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = records(folders[0])
    assert len(found) == 36 and {r["verdict"] for r in found} == {"down"}
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("answer", ["", " ", "an <image> of a cat", "half \ud83d"])
def test_what_cannot_be_trained_on_is_kept_with_the_reason(tmp_path: Path, answer: str) -> None:
    folder = FeedbackFolder(tmp_path)
    folder.keep(record("1", answer=answer), [Image(str(IMAGE))])
    assert records(folder)[0]["left_out"]
    with pytest.raises(DataError, match="every record is refused"):
        dataset(folder)


def test_an_answer_that_was_cut_is_trained_only_with_a_correction() -> None:
    assert record("1", is_complete=False)["left_out"] == "the answer is not complete"
    assert "left_out" not in record("1", correction="a dog", is_complete=False)
    assert fault_of([{"from": "human", "value": "?"}, {"from": "gpt", "value": "fine"}]) == ""


def test_what_else_is_at_the_place_of_the_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: {}\n")
    for place, told in (
        (tmp_path, "something else than feedback: notes.txt, run"),
        (tmp_path / "run", "something else than feedback: config.yaml"),
        (tmp_path / "notes.txt", "is not a folder"),
        (tmp_path / "a*", r"one of \* \? \["),
    ):
        with pytest.raises(UserError, match=told):
            FeedbackFolder(place)
    FeedbackFolder(tmp_path / "new").keep(record("1"))
    edited = (tmp_path / "new" / "config.yaml").read_text() + "run: {max_steps: 2}\n"
    (tmp_path / "new" / "config.yaml").write_text(edited)
    FeedbackFolder(tmp_path / "new")
    assert (tmp_path / "new" / "config.yaml").read_text() == edited

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(module, "replace_text", refuse)
    for place in ("new", "other"):
        with pytest.raises(UserError, match="cannot be written .Read-only"):
            FeedbackFolder(tmp_path / place)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = FeedbackFolder(tmp_path)
    folder.keep(record("1"))
    before = records(folder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", full)
        for key in "12":
            with pytest.raises(UserError, match="No space left") as caught:
                folder.keep(record(key, thumb=False), [Image(str(IMAGE))])
    assert str(tmp_path) not in str(caught.value)
    assert records(folder) == before and list((tmp_path / "images").iterdir()) == []
    folder.keep(record("2"), [Image(str(IMAGE))])
    assert [r["id"] for r in records(folder)] == ["1", "2"]
    monkeypatch.setattr(module, "MOST", 100)
    with pytest.raises(UserError, match="is full"):
        folder.keep(record("3"))
    with pytest.raises(DataError, match="no longer here"):
        folder.keep(record("3"), [Image(str(tmp_path / "gone.png"))])


def test_a_server_without_the_page_has_no_feedback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "tiny/eval", "--feedback", str(tmp_path)]) == 2
    assert "add --page" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("x")
    assert main(["demo", "tiny/eval", "--feedback", str(tmp_path)]) == 2
    assert "something else than feedback: notes.txt" in capsys.readouterr().err


class Thumb:
    """What Gradio tells of a click."""

    def __init__(self, index: int, liked: bool | str) -> None:
        self.index, self.liked = index, liked


def test_thumbs_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(write_config(tmp_path))
    folder, notices = FeedbackFolder(tmp_path / "f"), list[str]()
    monkeypatch.setattr(page.gr, "Warning", lambda text, **_: notices.append(text))
    models = Models({"m": engine}, {"m": EVALUATION})
    events = Events(models, ["max_new_tokens"], ratings=Ratings(folder, {"m": engine}))
    mine = events.ask({"text": "What is it?", "files": [str(IMAGE)]}, False, ["m"], None)[0]
    events.like(Thumb(1, True), "m", mine)
    system = template_option(engine, "system", "")
    writing = events.write(mine, 3, system)
    next(writing)
    events.like(Thumb(1, True), "m", mine)
    assert len(notices) == 1 and "no complete answer" in notices[0] and records(folder) == []
    list(writing)
    mine = events.ask({"text": "And now?", "files": []}, False, ["m"], mine)[0]
    list(events.write(mine, 3, system))
    first, second = (turn.replies["m"] for turn in mine.branches.shown)

    shown = events.like(Thumb(3, False), "m", mine)
    assert len(shown) == events.width + 1 and shown[1]["feedback_value"] == [None, "Dislike"]
    shown = events.correct("  a dog ", mine)
    assert "your correction" in shown[-1] and shown[-2]["visible"]
    found = records(folder)[0]
    assert [t["value"] for t in found["conversations"]] == ["<image>\nWhat is it?", first.text, "And now?", "a dog"]
    assert (found["answer"], found["model"], found["run"]) == (second.text, "m", [])
    assert found["generation"]["max_new_tokens"] == 3 and found["fingerprint"]
    given = [m.text for m in second.given]
    assert [m.text for m in dataset(folder)[0].messages] == [*given, "a dog"]

    for words in ("an <image>", "\ud83d"):
        events.correct(words, mine)
    assert len(notices) == 3 and records(folder) == [found]
    events.undo(None, mine)
    assert events.view(mine)[-2]["visible"] is False  # the answer that was rated is not shown
    events.go(-1, mine)
    assert events.like(Thumb(3, ""), "m", mine)[1]["feedback_value"] == [None, None]
    assert records(folder) == [] and list((folder.path / "images").iterdir()) == []
    events.again(["m"], mine)
    list(events.write(mine, 3, system))
    events.like(Thumb(3, True), "m", mine)
    assert len(records(folder)) == len(list((folder.path / "images").iterdir())) == 1 and len(notices) == 3
    for index in (0, 9):
        events.like(Thumb(index, True), "m", mine)
    assert Events(models, []).width == events.width - 2
    both = Ratings(folder, {"m": engine, "<n>": engine})
    assert both.row(mine)[1].startswith("m: <q>")
