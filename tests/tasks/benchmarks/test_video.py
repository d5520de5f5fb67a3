"""Questions about videos from their original files, against recorded numbers of their scripts."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch

from vlm.cli.main import main
from vlm.common.errors import DataError
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.base import Questions
from vlm.tasks.benchmarks.standard.base import StandardOptions
from vlm.tasks.benchmarks.standard.stored import score_file
from vlm.tasks.benchmarks.standard.video.msvd_qa import MsrvttQa, MsvdQa
from vlm.tasks.benchmarks.standard.video.next_qa import NextQa, NextQaOpen
from vlm.tasks.benchmarks.standard.video.video_choice import VideoChoice

from ...runners.lynx_small import composition, moving_square
from ..asked import Asked

RECORDED = Path(__file__).parent / "recorded"
NEXT = json.loads((RECORDED / "next_qa.json").read_text())
MVBENCH = json.loads((RECORDED / "video_choice.json").read_text())
QA = [
    {"answer": a, "id": 100 + k, "question": q, "video_id": 1200 + k}
    for k, (q, a) in enumerate(
        [("what is a man doing?", "slice"), ("who is slicing?", "man"), ("how many dogs run?", "two")]
        + [("where is the cat?", "table"), ("is it raining?", "no"), ("what does a girl hold?", "ball")]
    )
]
OPEN = [
    {"video": "77", "frame_count": 9, "width": 6, "height": 4, "question": f"q{k}", "answer": a, "qid": k, "type": t}
    for k, (a, t) in enumerate([("jumps out", "CH"), ("to play", "CW"), ("two", "DC"), ("park", "DL"), ("runs", "TP")])
]


def table(file: Path, rows: list[dict]) -> Path:
    with file.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def dump(file: Path, data: object) -> str:
    file.write_text(json.dumps(data))
    return str(file)


@pytest.fixture
def next_qa(tmp_path: Path) -> Path:
    table(tmp_path / "val.csv", NEXT["rows"])
    return tmp_path


@pytest.fixture
def mvbench(tmp_path: Path) -> Path:
    (tmp_path / "json").mkdir()
    for task, records in MVBENCH["tasks"].items():
        dump(tmp_path / "json" / f"{task}.json", records)
    return tmp_path / "json"


class Engine(Asked):
    """Answers with the name of the video."""

    def default_generation(self, base):
        return base

    def generate(self, conversations, generation, batch_size=16):
        return [Path(c[-1].media[0].source).stem for c in conversations]


@pytest.mark.parametrize(("benchmark", "video"), [(MsvdQa, "vid1200.avi"), (MsrvttQa, "video1200.mp4")])
def test_words_about_videos(benchmark, video: str, tmp_path: Path) -> None:
    dump(tmp_path / "test_qa.json", QA)
    for k in range(6):
        (tmp_path / video.replace("1200", str(1200 + k))).touch()
    opened = benchmark.open(str(tmp_path), "", StandardOptions())
    assert Path(opened.items[0].media[0].source).name == video
    assert opened.prompts[0] == "what is a man doing?\nAnswer with a single word."
    said = [{"id": 100 + k, "answer": a} for k, a in enumerate(["slice", "Man.", "three", "the table", "no", " ball"])]
    found = score_file(benchmark, str(tmp_path), "", [dump(tmp_path / "prediction.json", said)], StandardOptions())
    assert found.scores["metrics"]["accuracy"] == 4 / 6
    groups = {g: (v["value"], v["count"]) for g, v in found.scores["by_group"]["accuracy"].items()}
    assert groups == {"how": (0, 1), "other": (1, 1), "what": (1, 2), "where": (0, 1), "who": (1, 1)}
    asked = benchmark().run(Engine(), Questions(opened), StandardOptions())
    assert asked.scores["count"] == 6 and asked.predictions[0].answer == Path(video).stem


def test_next_qa_of_a_published_result_file(next_qa: Path) -> None:
    file = dump(next_qa / "HGA-val.json", NEXT["official"]["file"])
    found = score_file(NextQa, str(next_qa), "", [file], StandardOptions())
    said, metrics = NEXT["official"]["printed"], found.scores["metrics"]
    names = {"Acc": "accuracy", "Acc_C": "causal", "Acc_T": "temporal", "Acc_D": "descriptive"}
    types = {"Why": "CW", "How": "CH", "Bef&Aft": "TN", "When": "TC", "Cnt": "DC", "Loc": "DL", "Other": "DO"}
    assert {k: f"{metrics[name] * 100:.2f}" for k, name in names.items()} == {k: said[k] for k in names}
    groups = found.scores["by_group"]["accuracy"]
    assert {k: f"{groups[name]['value'] * 100:.2f}" for k, name in types.items()} == {k: said[k] for k in types}


def test_next_qa_of_lmms(next_qa: Path) -> None:
    options = StandardOptions(protocol="lmms")
    opened = NextQa.open(str(next_qa), "", options)
    texts, letters = NEXT["lmms"]["texts"], NEXT["lmms"]["letters"]
    found = NextQa.score(opened.items, [[Answer(texts[item.id]) for item in opened.items]], options)
    read = [p.fields.get("read", p.answer) for p in found.predictions]
    assert read == [letters[item.id] for item in opened.items]
    assert found.scores["metrics"]["accuracy"] == NEXT["lmms"]["right"] / 20
    assert found.scores["unread"] == list(letters.values()).count(None) == 6
    assert opened.prompts[0] == NEXT["lmms"]["prompt"]


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("B", "B"), ("(B) clap hands", "B"), ("B. clap", "B"), ("clap hands.", "B"), ("Clap Hands", "B"),
        ("A boy", "A"), ("Because they clap", None), ("F", None), ("the answer is B", None),
    ],
)  # fmt: skip
def test_next_qa_reads_the_letter_at_the_start(answer: str, read: str | None, next_qa: Path) -> None:
    item = NextQa.open(str(next_qa), "", StandardOptions()).items[0]
    assert NextQa.function("letter")(answer, item) == read


def test_next_qa_finds_videos_in_the_folders_of_vidor(next_qa: Path) -> None:
    dump(next_qa / "map_vid_vidorID.json", {"4000": "0101/4000", "4001": "0102/4001"})
    (next_qa / "videos" / "0101").mkdir(parents=True)
    (next_qa / "videos" / "0101" / "4000.mp4").touch()
    items = NextQa.open(str(next_qa), str(next_qa / "videos"), StandardOptions()).items
    assert items[0].media[0].source == str(next_qa / "videos" / "0101" / "4000.mp4")
    assert items[3].media[0].source == str(next_qa / "videos" / "4001.mp4")


def test_next_qa_open_has_second_references(tmp_path: Path) -> None:
    table(tmp_path / "test.csv", OPEN)
    dump(tmp_path / "add_reference_answer_test.json", {"77": {"1": "for fun", "2": "2"}})
    said = {"77": {"0": "Jumps out.", "1": "for fun", "2": "2", "3": "in a park", "4": "run"}}
    file = dump(tmp_path / "HGA-test.json", said)
    found = score_file(NextQaOpen, str(tmp_path), "", [file], StandardOptions(split="test"))
    metrics = {"exact match": 0.6, "causal": 1.0, "temporal": 0.0, "descriptive": 0.5}
    assert found.scores["metrics"] == metrics and list(found.scores["metrics"])[0] == "exact match"
    with pytest.raises(DataError, match="answer 'jumps out' is not the number of a choice, 0 to 4"):
        NextQa.open(str(tmp_path), "", StandardOptions(split="test"))


@pytest.mark.parametrize("protocol", ["official", "lmms"])
def test_mvbench_numbers(protocol: str, mvbench: Path) -> None:
    said, options = MVBENCH[protocol], StandardOptions(protocol=protocol)
    opened = VideoChoice.open(str(mvbench), "", options)
    answers = [Answer(MVBENCH["answers"][item.id]) for item in opened.items]
    found = VideoChoice.score(opened.items, [answers], options)
    assert {p.id: p.right for p in found.predictions} == said["right"]
    overall = said["accuracy"] if protocol == "official" else said["aggregated"] / 100
    assert found.scores["metrics"] == {"accuracy": overall}
    assert {g: v["count"] for g, v in found.scores["by_group"]["accuracy"].items()} == {
        "action_sequence": 12,
        "moving_count": 12,
    }
    assert opened.prompts[0] == said["prompt"]


def test_an_empty_answer_is_never_right_in_mvbench(mvbench: Path) -> None:
    options = StandardOptions(empty="wrong")
    items = VideoChoice.open(str(mvbench), "", options).items
    assert VideoChoice.score(items, [[Answer("")] * 24], options).scores["metrics"]["accuracy"] == 0


def test_mvbench_finds_videos_in_its_folders(mvbench: Path, tmp_path: Path) -> None:
    for folder, name in (("star/Charades_segment", "0.mp4"), ("moving_count", "12.mp4")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).touch()
    items = VideoChoice.open(str(mvbench), str(tmp_path), StandardOptions()).items
    found = {i.id: str(Path(i.media[0].source).relative_to(tmp_path)) for i in items}
    assert found["action_sequence_0"] == "star/Charades_segment/0.mp4"
    assert found["moving_count_0"] == "moving_count/12.mp4" and found["action_sequence_1"] == "1.mp4"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"4000_0": {"prediction": "x", "answer": 1}}, "not answers in the form of NExT-QA .*invalid literal"),
        ({"4000_0": {"prediction": 0, "answer": 1}}, "19 of 20 questions have no answer"),
        ([{"qid": "4000_0", "prediction": "A"}] * 2, "two answers to 4000_0"),
    ],
)
def test_other_answers_are_one_message(content: object, message: str, next_qa: Path) -> None:
    with pytest.raises(DataError, match=message):
        score_file(NextQa, str(next_qa), "", [dump(next_qa / "r.json", content)], StandardOptions())


def test_times_that_are_not_read_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = {"video": "a.mp4", "question": "?", "candidates": ["x", "y"], "answer": "y", "start": 1.5, "end": 3}
    VideoChoice.open(dump(tmp_path / "task.json", [record, record]), "", StandardOptions())
    assert [r.getMessage() for r in caplog.records] == [
        "task: the times start and end are not read; use the cut videos of this task"
    ]


def test_an_answer_that_is_no_candidate_is_named(tmp_path: Path) -> None:
    record = {"video": "a.mp4", "question": "?", "candidates": ["x", "y"], "answer": "z"}
    with pytest.raises(DataError, match="task.json: task_0: the answer 'z' is not among the candidates"):
        VideoChoice.open(dump(tmp_path / "task.json", [record]), "", StandardOptions())


def test_a_model_answers_about_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    dump(tmp_path / "test_qa.json", QA[:2])
    for k in range(2):
        moving_square(tmp_path / f"video{1200 + k}.mp4", (255, 0, 0))
    config = str(composition(tmp_path, run={"device": "cpu"}))
    command = ["eval", config, "--benchmark", "msrvtt_qa", "--data", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*command, "--images", "right,blank"]) == 0
    scores = json.loads((tmp_path / "out" / "evaluation.json").read_text())["msrvtt_qa"]
    assert {image: (s["protocol"], s["count"], s["errors"]) for image, s in scores.items()} == {
        "right": ("official", 2, 0),
        "blank": ("official", 2, 0),
    }
    (tmp_path / "video1201.mp4").unlink()
    capsys.readouterr()
    assert main(command) == 0
    again = json.loads((tmp_path / "out" / "evaluation.json").read_text())["msrvtt_qa"]["right"]
    assert (again["count"], again["errors"]) == (1, 1)
    printed = capsys.readouterr()
    assert re.search(r"errors +1\n", printed.out)
    assert f"left out: video {tmp_path / 'video1201.mp4'}: no such file" in printed.err
