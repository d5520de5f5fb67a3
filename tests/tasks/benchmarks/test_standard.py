"""What all standard benchmarks share: YAML, faults of files, errors that are not wrong answers, stored answers."""

import json
from pathlib import Path

import pytest

from vlm.cli.main import main
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import names, resolve
from vlm.common.types import Image, Message, Text, Video
from vlm.runners.evaluate.run import about
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.base import NOTHING
from vlm.tasks.benchmarks.image_controls import CONTROLS, Controlled
from vlm.tasks.benchmarks.standard.base import StandardBenchmark, StandardOptions
from vlm.tasks.benchmarks.standard.items import Files, Item, Items, asked
from vlm.tasks.benchmarks.standard.spec import read_spec
from vlm.tasks.benchmarks.standard.stored import read_answers, score_file
from vlm.tasks.benchmarks.standard.yes_no.pope import Pope

SHIPPED = [n for n in names("benchmark") if issubclass(resolve("benchmark", n), StandardBenchmark)]
ASKED = {"question": "q", "options": "A. a", "image": "", "hint": ""}


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    lines = [
        {"question_id": k, "image": f"{k}.jpg", "text": "A dog?", "label": "no" if k % 2 else "yes"} for k in range(6)
    ]
    return written(tmp_path / "coco_pope_random.json", lines)


def written(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answers(path: Path, said: dict) -> str:
    return str(written(path.with_name("answers.jsonl"), [{"question_id": k, "answer": v} for k, v in said.items()]))


def score(pope: Path, said: dict, **options):
    return score_file(Pope, str(pope), "", [answers(pope, said)], StandardOptions(**options))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_name_in_a_yaml_leads_somewhere(name: str) -> None:
    benchmark = resolve("benchmark", name)
    spec = benchmark.spec()
    assert "official" in spec.protocols and spec.about.endswith(("?", "."))
    for protocol in spec.protocols.values():
        for function in (protocol.answer, protocol.prompt_of, protocol.right, spec.submission, *protocol.metrics):
            assert not function or callable(benchmark.function(function))
        assert protocol.metrics or spec.unscored
    assert not spec.default or spec.default in spec.protocols


def test_a_score_with_interval_groups_and_counts(pope: Path) -> None:
    found = score(pope, {0: "Yes.", 1: "No, there is not.", 2: "Yes, a dog.", 3: "yes", 4: "no", 5: "It has no dog."})
    assert found.scores["metrics"]["accuracy"] == pytest.approx(4 / 6)
    assert found.scores["primary"] == "f1" and found.scores["metrics"]["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    low, high = found.scores["intervals"]["accuracy"]
    assert 0 < low < 4 / 6 < high <= 1
    assert len(found.scores["data"]) == 64 and found.scores["protocol"] == "official"
    assert {m.label for m in found.metrics} == set(found.scores["metrics"])


def test_an_empty_or_failed_answer_is_an_error_and_not_wrong(pope: Path) -> None:
    said = {k: "yes" if k % 2 == 0 else "no" for k in range(6)} | {1: "  ", 2: ""}
    found = score(pope, said)
    assert (found.scores["errors"], found.scores["count"], found.scores["metrics"]["accuracy"]) == (2, 4, 1.0)
    assert [p.error for p in found.predictions if p.error] == [NOTHING] * 2
    assert score(pope, said, empty="wrong").scores["errors"] == 0
    written(
        pope.with_name("answers.jsonl"), [{"question_id": k, "answer": "", "error": "out of memory"} for k in range(6)]
    )
    with pytest.raises(DataError, match=r"none of the 6 answers can be scored.*out of memory"):
        score_file(Pope, str(pope), "", [str(pope.with_name("answers.jsonl"))], StandardOptions())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"question_id": k, "answer": "no"} for k in range(5)], "1 of 6 questions have no answer .e.g. 5"),
        ([{"question_id": k, "answer": "no"} for k in range(8)], "2 answers have no question .e.g. 6, 7"),
        ([{"question_id": 0, "answer": "no"}] * 2, "two answers to 0"),
        ([{"question": 0, "reply": "no"}], "a line with the fields question, reply"),
        ([{"question_id": 0}], "a line with the fields question_id"),
        ([], "6 of 6 questions have no answer"),
    ],
)
def test_answers_of_another_set_are_one_message(pope: Path, lines: list[dict], message: str) -> None:
    file = written(pope.with_name("answers.jsonl"), lines)
    with pytest.raises(DataError, match=message):
        score_file(Pope, str(pope), "", [str(file)], StandardOptions())


def test_several_files_are_several_runs_and_results_say_so(pope: Path) -> None:
    file = answers(pope, {k: "no" if k % 2 else "yes" for k in range(6)})
    found = score_file(Pope, str(pope), "", [file, file], StandardOptions())
    assert about(found)["runs"] == 2 and about(score_file(Pope, str(pope), "", [file], StandardOptions()))["runs"] == 1


def test_answers_that_are_not_there_are_one_message(pope: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(DataError, match="no such file"):
            score_file(Pope, str(pope), "", [str(file)], StandardOptions())


def test_answers_in_every_form(tmp_path: Path) -> None:
    stored = Pope.spec().answers
    expected = {"1": "yes", "2": "a, b"}
    rows = [{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": "a, b"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps(expected))
    (tmp_path / "c.json").write_text(json.dumps({"meta": {}, "results": rows}))
    (tmp_path / "d.csv").write_text('question_id,answer\n1,yes\n2,"a, b"\n')
    (tmp_path / "e.tsv").write_text("question_id\tanswer\n1\tyes\n2\ta, b\n")
    written(tmp_path / "f.jsonl", rows)
    shown = [
        {"dataset": "pope", "image": image, "id": r["question_id"], "answer": r["answer"]}
        for r in rows
        for image in ("right", "none")
    ]
    written(tmp_path / "g.jsonl", shown)
    assert all(read_answers(str(file), stored) == expected for file in sorted(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no question in it"),
        ("[1, 2", "not JSON"),
        ('{"question_id": 1}\n', "not the annotations of POPE .record 1: KeyError"),
        ('{"question_id": 1, "image": 5, "text": "a", "label": "no"}\n', "int"),
        ('{"question_id": 1, "image": "a", "text": "a", "label": "no"}\n' * 2, "id 1 occurs twice"),
    ],
)
def test_annotations_that_cannot_be_read_are_one_message(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "coco_pope_random.json").write_text(content)
    with pytest.raises(DataError, match=message):
        Pope().open(str(tmp_path), "", StandardOptions())


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of coco_pope_popular.json is there"):
        Pope().open(str(tmp_path), "", StandardOptions(split="popular"))
    with pytest.raises(DataError, match="unknown split of POPE 'val'"):
        Pope().open(str(tmp_path), "", StandardOptions(split="val"))
    with pytest.raises(DataError, match="no such file or folder"):
        Pope().open(str(tmp_path / "x"), "", StandardOptions())
    with pytest.raises(ConfigError, match="protocol of POPE"):
        Pope().open(str(tmp_path), "", StandardOptions(protocol="mine"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "5"], "--limit is a flag of --benchmark"),
        (["--media-root", "images"], "evaluation_datasets.NAME.img_path"),
        (["--benchmark", "pope", "--data", "x", "--shots-data", "y"], "--shots-media without --shots"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(flags: list[str], message: str, capsys) -> None:
    assert main(["eval", "tiny/eval", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_sample_is_the_same_each_time_and_in_the_files_order(pope: Path) -> None:
    drawn = [[i.id for i in Pope().open(str(pope), "", StandardOptions(limit=3, seed=s)).items] for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] == sorted(drawn[0]) and len(set(drawn[0])) == 3 and drawn[2] != drawn[0]


@pytest.mark.parametrize("control", CONTROLS)
def test_every_kind_of_question_takes_every_image_control(control: str) -> None:
    """One image, several at places in the text, a video, none at all, and an example before the question."""
    media = [(Image("a.png"),), (Image("b.png"), Image("c.png")), (Video("d.mp4"),), (Video("e.mp4"),), ()]
    items = [Item(str(k), f"{'<image>' * len(own)}q{k}", own) for k, own in enumerate(media)]
    example = (Message("user", (Image("f.png"), Text("q?"))), Message("assistant", "yes"))
    questions = Controlled(Items(items, [item.question for item in items], [example] * len(items)), control)
    for item, sample in zip(items, map(questions.__getitem__, range(len(items))), strict=True):
        shown = [m for message in sample.messages for m in message.media]
        own = [Image("f.png"), *item.media]
        assert [message.text for message in sample.messages] == ["q?", "yes", f"q{item.id}"] and sample.id == item.id
        assert [type(m) for m in shown] == ([] if control == "none" else [type(m) for m in own])
        same = [m.source == o.source for m, o in zip(shown, own, strict=False)]
        assert all(same) if control == "right" else not any(same)
        endings = [str(m.source).endswith(".mp4") for m in shown if control == "wrong"]
        assert endings == [isinstance(m, Video) for m in own][: len(endings)]  # no image in place of a video


def test_too_few_examples_are_one_message(pope: Path) -> None:
    opened = Pope.open(str(pope), "", StandardOptions(shots=4, shots_path=str(pope)))
    assert [len(opened[k].messages) for k in range(6)] == [9] * 6
    with pytest.raises(DataError, match=r"5 examples for question 0, asked for 8"):
        Pope.open(str(pope), "", StandardOptions(shots=8, shots_path=str(pope)))


def test_names_that_people_write() -> None:
    wanted = """
        vqav2 okvqa ok_vqa aokvqa aokvqa_mc gqa vizwiz vizwiz_vqa textvqa ocrvqa ocr_vqa scienceqa scienceqa_img iconqa
        iconvqa mmbench seed_bench seedbench mmmu vsr hateful_memes hm pope mme coco_caption_eval coco_captions nocaps
        flickr30k textcaps chair refcoco refcoco+ refcocog mm_vet mmvet llava_bench llava_in_the_wild owleval owleval_zh
        llava_zh msvd_qa msrvtt_qa next_qa next_qa_open video_choice mvbench
    """
    assert set(wanted.split()) <= set(SHIPPED)


def test_media_go_where_the_text_says() -> None:
    a, b = Image("a.png"), Image("b.png")
    item = Item("1", "q", (a, b))
    assert asked(item, "left <image> right <image>?") == Message(
        "user", [Text("left "), a, Text(" right "), b, Text("?")]
    )
    assert asked(item, "what?") == Message("user", [a, b, "what?"])
    assert asked(item, "one <image> only") == Message("user", [a, b, "one  only"])


def test_a_yaml_with_an_unknown_key_or_protocol_names_it(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "title: X\nabout: a.\nsource: b\nfiles: [c]\nmedia: d\nprotocols: {mine: {about: e, metric: [f]}}\n"
    )
    with pytest.raises(ConfigError, match=r"(?s)protocols.mine.metric.*protocols.mine"):
        read_spec(tmp_path / "x.yaml")


def test_the_digest_follows_the_contents(pope: Path) -> None:
    one = Pope().open(str(pope), "", StandardOptions()).digest
    assert Pope().open(str(pope.parent), "", StandardOptions()).digest == one
    pope.write_text(pope.read_text().replace("dog", "cat"))
    assert Pope().open(str(pope), "", StandardOptions()).digest != one


def test_a_table_cannot_be_found_in_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of a.tsv, b_\*.tsv is there"):
        Files(tmp_path).table("a.tsv", "b_*.tsv")


def test_answer_errors_survive_scoring_of_several_runs() -> None:
    items = [Item(str(k), "q", (), "yes") for k in range(3)]
    runs = [[Answer("yes"), Answer("", "crash"), Answer("no")], [Answer("yes"), Answer("no"), Answer("yes")]]
    found = Pope.score(items, runs, StandardOptions(seeds=[0, 1]))
    assert (found.scores["count"], found.scores["errors"]) == (2, 1)
    assert found.scores["runs"]["accuracy"] == [0.5, 1.0] and found.scores["metrics"]["accuracy"] == 0.75
