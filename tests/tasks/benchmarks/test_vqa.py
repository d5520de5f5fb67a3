"""The benchmarks with short answers: files in their original layout, recorded scores, faults of files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Images

from vlm.common.errors import DataError
from vlm.common.registry import resolve
from vlm.config.api import load_config
from vlm.runners.evaluate.run import asked_of
from vlm.tasks.benchmarks.base import Questions
from vlm.tasks.benchmarks.standard.base import StandardOptions
from vlm.tasks.benchmarks.standard.stored import score_file
from vlm.testing import tiny_engine

RECORDED = Path(__file__).parent / "recorded"
VQA, GQA, AOKVQA = (json.loads((RECORDED / f"{n}.json").read_text(encoding="utf-8")) for n in ("vqa", "gqa", "aokvqa"))


def dumped(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def people(row: dict) -> list[dict]:
    texts = [text for text, count in row["references"] for _ in range(count)]
    return [{"answer": text, "answer_id": k, "answer_confidence": "yes"} for k, text in enumerate(texts, start=1)]


def pair(folder: Path, questions: str, annotations: str, **more: Any) -> Path:
    rows, known = VQA["questions"], ("question_id", "image_id")
    asked = [{k: row[k] for k in (*known, "question")} for row in rows]
    notes = [{k: row[k] for k in (*known, "question_type", "answer_type")} | {"answers": people(row)} for row in rows]
    dumped(folder / questions, {"info": {}, "questions": asked})
    return dumped(folder / annotations, {"info": {}, "annotations": notes, **more}).parent


def vqav2(folder: Path) -> Path:
    return pair(folder, "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")


def okvqa(folder: Path) -> Path:
    kinds = {"question_types": {"how many": "Counting"}}
    return pair(folder, "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json", **kinds)


def vizwiz(folder: Path) -> Path:
    rows = [
        {"image": f"VizWiz_val_{row['image_id']:08d}.jpg", "question": row["question"], "answers": people(row)}
        | {"answer_type": row["answer_type"], "answerable": int(row["answer_type"] != "unanswerable")}
        for row in VQA["questions"]
    ]
    return dumped(folder / "val.json", rows).parent


def textvqa(folder: Path) -> Path:
    rows = [
        {"question_id": row["question_id"], "image_id": f"{row['image_id']:016x}", "question": row["question"]}
        | {"answers": [p["answer"] for p in people(row)], "set_name": "val"}
        for row in VQA["questions"]
    ]
    return dumped(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows}).parent


def said(folder: Path, key: str = "question_id") -> str:
    """The recorded answers as a result file."""
    names = {r["question_id"]: r["question_id"] for r in VQA["questions"]}
    if key == "image":
        names = {r["question_id"]: f"VizWiz_val_{r['image_id']:08d}.jpg" for r in VQA["questions"]}
    rows = [{key: names[r["question_id"]], "answer": r["answer"]} for r in VQA["questions"]]
    return str(dumped(folder / "said" / "results.json", rows))


def scored(name: str, data: Path, answers: str, **options: Any) -> dict[str, Any]:
    return dict(score_file(resolve("benchmark", name), str(data), "", [answers], StandardOptions(**options)).scores)


@pytest.mark.parametrize(
    ("name", "write", "protocol", "record"),
    [
        ("vqav2", vqav2, "official", VQA["official"]),
        ("vqav2", vqav2, "lmms", VQA["lmms"]["vqav2"]),
        ("okvqa", okvqa, "official", VQA["official"]),
        ("okvqa", okvqa, "", VQA["published"]),
        ("okvqa", okvqa, "lmms", VQA["lmms"]["okvqa"]),
        ("vizwiz", vizwiz, "official", VQA["vizwiz"]),
        ("vizwiz", vizwiz, "lmms", VQA["lmms"]["okvqa"]),
        ("textvqa", textvqa, "official", VQA["textvqa"]),
        ("textvqa", textvqa, "lmms", VQA["lmms"]["okvqa"]),
    ],
)
def test_scores_are_those_of_the_script(tmp_path: Path, name: str, write: Any, protocol: str, record: dict) -> None:
    found = scored(
        name, write(tmp_path), said(tmp_path, "image" if name == "vizwiz" else "question_id"), protocol=protocol
    )
    assert round(100 * found["metrics"]["accuracy"], 2) == record["overall"] and found["errors"] == 0
    assert found["protocol"] == (protocol or "published")


def test_vqav2_by_type_of_answer_and_question(tmp_path: Path) -> None:
    found = scored("vqav2", vqav2(tmp_path), said(tmp_path))["by_group"]
    for label, field in (("accuracy", "perAnswerType"), ("by question type", "perQuestionType")):
        assert {k: round(100 * v["value"], 2) for k, v in found[label].items()} == VQA["official"][field]


def test_okvqa_names_categories_and_vizwiz_what_can_be_answered(tmp_path: Path) -> None:
    found = scored("okvqa", okvqa(tmp_path / "o"), said(tmp_path), protocol="official")["by_group"]["accuracy"]
    assert found["Counting"]["count"] == 3 and "how many" not in found
    found = scored("vizwiz", vizwiz(tmp_path / "v"), said(tmp_path, "image"), protocol="official")["by_group"]
    assert found["by answerable"]["unanswerable"] == {"value": 1.0, "count": 1}


def test_minigpt_v2_takes_all_ten_answers_of_vizwiz(tmp_path: Path) -> None:
    one = {"image": "a.jpg", "question": "What?", "answers": [{"answer": a} for a in ("Cat", "cat_dog", *"efghijkl")]}
    data = dumped(tmp_path / "val.json", [one])
    for answer, expected in (("cat", 2 / 3), ("DOG", 1 / 3), ("cat_dog", 0), ("e", 1 / 3)):
        answers = dumped(tmp_path / "r.json", [{"image": "a.jpg", "answer": answer}])
        assert scored("vizwiz", data, str(answers))["metrics"]["accuracy"] == pytest.approx(expected)


def test_gqa_by_structure_meaning_steps_and_length(tmp_path: Path) -> None:
    data = dumped(tmp_path / "testdev_balanced_questions.json", GQA["questions"]).parent
    answers = str(dumped(tmp_path / "r" / "predictions.json", GQA["predictions"]))
    found, expected = scored("gqa", data, answers, protocol="official"), GQA["scores"]
    metrics, groups = found["metrics"], found["by_group"]
    for label in ("accuracy", "binary", "open"):
        assert 100 * metrics[label] == pytest.approx(expected[label], abs=1e-12)
    names = {"attr": "attribute", "cat": "category", "global": "scene", "obj": "object", "rel": "relation"}
    for label, field in {
        "accuracy": "accuracyPerStructuralType",
        "by semantic type": "accuracyPerSemanticType",
        "by reasoning steps": "accuracyPerSteps",
        "by question length": "accuracyPerLength",
    }.items():
        script = {names.get(k, k): v for k, v in expected[field].items()}
        ours = {k: [100 * v["value"], v["count"]] for k, v in groups[label].items()}
        assert ours == {k: pytest.approx(v, abs=1e-12) for k, v in script.items()}
    assert scored("gqa", data, answers, protocol="lmms")["metrics"]["accuracy"] == pytest.approx(7 / 11)
    assert scored("gqa", data, answers)["metrics"]["accuracy"] == pytest.approx(7 / 11)


def test_gqa_as_minigpt_v2_reads_it(tmp_path: Path) -> None:
    rows = [{"image": f"n{k}.jpg", "question": "What?", "answer": a} for k, a in enumerate(("dog", "yes"))]
    data = dumped(tmp_path / "testdev_balanced_questions.json", rows)
    answers = dumped(tmp_path / "r.json", {"0": "Dog", "1": "Yes."})
    found = scored("gqa", data, str(answers))
    assert (found["protocol"], found["metrics"]) == ("published", {"accuracy": 0.5})
    assert scored("gqa", data, str(answers), protocol="official")["metrics"] == {"accuracy": 0.0}


def test_aokvqa_in_both_forms(tmp_path: Path) -> None:
    data = dumped(tmp_path / "aokvqa_v1p0_val.json", AOKVQA["questions"]).parent
    answers = str(dumped(tmp_path / "r" / "predictions.json", AOKVQA["predictions"]))
    direct, choice = scored("aokvqa", data, answers), scored("aokvqa_mc", data, answers)
    told = score_file(resolve("benchmark", "aokvqa"), str(data), "", [answers], StandardOptions()).predictions
    assert [p.right for p in told] == [True, False, True, None, True]
    assert 100 * direct["metrics"]["accuracy"] == pytest.approx(AOKVQA["scores"]["direct_answer"], abs=1e-12)
    assert 100 * choice["metrics"]["accuracy"] == pytest.approx(AOKVQA["scores"]["multiple_choice"], abs=1e-12)
    assert (choice["unread"], choice["count"]) == (1, 5)
    letters = dumped(
        tmp_path / "l" / "p.json", {f"q{k}": text for k, text in enumerate(["(C)", "A", "D.", "B: 30", "A ball"])}
    )
    assert scored("aokvqa_mc", data, str(letters))["metrics"]["accuracy"] == pytest.approx(4 / 5)


def test_examples_of_aokvqa_answer_as_asked(tmp_path: Path) -> None:
    data = dumped(tmp_path / "aokvqa_v1p0_val.json", AOKVQA["questions"])
    train = dumped(tmp_path / "t" / "aokvqa_v1p0_train.json", AOKVQA["questions"][:1])
    options = StandardOptions(shots=1, shots_path=str(train), shots_media=str(tmp_path / "train2017"))
    for name, expected in (("aokvqa", "cab"), ("aokvqa_mc", "C")):
        opened = resolve("benchmark", name)().open(str(data), str(tmp_path), options)
        assert [m.text for m in opened[4].messages if m.role == "assistant"] == [expected]


def test_ocrvqa_asks_the_questions_of_a_split(tmp_path: Path) -> None:
    covers = {
        f"00{k}": {"imageURL": f"http://x.org/i/{k}.gif?a", "genre": "Art", "split": split}
        | {
            "questions": ["Who wrote it?", "Which year?"],
            "answers": ["Ann Lee", "1999"],
            "title": "T",
            "authorName": "Ann Lee",
        }
        for k, split in enumerate((1, 3, 3, 2, 3))
    }
    data = dumped(tmp_path / "dataset.json", covers)
    opened = resolve("benchmark", "ocrvqa")().open(str(data), "", StandardOptions())
    assert [item.id for item in opened.items] == ["001_0", "001_1", "002_0", "002_1", "004_0", "004_1"]
    assert opened.items[0].media[0].source.endswith("001.gif")
    said = {"001_0": "ann lee", "001_1": "1999", "002_0": "Ann Lee", "002_1": "2000"}
    said |= {"004_0": "Ann Lee.", "004_1": " 1999\n"}
    found = scored("ocrvqa", data, str(dumped(tmp_path / "r.json", said)))
    assert found["metrics"] == {"accuracy": 3 / 6, "case ignored": 4 / 6}
    assert found["by_group"]["accuracy"] == {"Art": {"value": 0.5, "count": 6}}


def test_the_files_of_minigpt_v2s_okvqa(tmp_path: Path) -> None:
    pair(tmp_path, "OpenEnded_mscoco_val2014_questions_clean.json", "mscoco_val2014_annotations_clean.json")
    rows = [{k: row[k] for k in ("question_id", "image_id", "question")} for row in VQA["questions"]]
    dumped(tmp_path / "okvqa_test_split.json", rows)
    (tmp_path / "000000000002.jpg").write_bytes(b"")
    opened = resolve("benchmark", "okvqa")().open(str(tmp_path), "", StandardOptions())
    assert len(opened) == 16
    assert Path(opened.items[1].media[0].source).name == "000000000002.jpg"
    assert opened.prompts[0] == (
        "[vqa] Based on the image, respond to this question with a short answer: What color is the kite?"
    )
    assert scored("okvqa", tmp_path, said(tmp_path))["metrics"]["accuracy"] == pytest.approx(0.825)


def test_prompts_of_the_protocols(tmp_path: Path) -> None:
    def prompts(name: str, data: Path, protocol: str) -> str:
        return resolve("benchmark", name)().open(str(data), "", StandardOptions(protocol=protocol)).prompts[0]

    rows = [{"image": "a.jpg", "question": "WHAT is THIS?", "answers": [{"answer": "x"}]}]
    data = dumped(tmp_path / "val.json", rows)
    assert prompts("vizwiz", data, "published") == (
        "[vqa] The question is 'WHAT is THIS?' Based on the image, answer the question with a single word or phrase. "
        "and reply 'unanswerable' when the provided information is insufficient"
    )
    assert prompts("vizwiz", data, "lmms") == (
        "What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )
    assert prompts("vqav2", vqav2(tmp_path / "v"), "lmms") == (
        "What color is the kite?\nAnswer the question using a single word or phrase."
    )


def test_a_test_split_has_no_scores_but_a_file_for_the_server(tmp_path: Path) -> None:
    questions = [{"question_id": 7, "image_id": 1, "question": "What?"}]
    dumped(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": questions})
    answers = dumped(tmp_path / "r" / "r.json", [{"question_id": 7, "answer": "a cat"}])
    found = score_file(
        resolve("benchmark", "vqav2"), str(tmp_path), "", [str(answers)], StandardOptions(split="test-dev")
    )
    assert found.scores["metrics"] == {} and found.scores["count"] == 1
    assert json.loads(found.files["results.json"]) == [{"question_id": 7, "answer": "a cat"}]


def test_another_split_or_a_repeated_id_is_one_message(tmp_path: Path) -> None:
    data = vqav2(tmp_path)
    file = data / "v2_mscoco_val2014_annotations.json"
    notes = json.loads(file.read_text())
    dumped(file, {"annotations": notes["annotations"][1:] + [notes["annotations"][0] | {"question_id": 5}]})
    benchmark = resolve("benchmark", "vqav2")()
    with pytest.raises(DataError, match="1 questions have no annotation, 1 annotations have no question"):
        benchmark.open(str(data), "", StandardOptions())
    dumped(file, {"annotations": notes["annotations"] + notes["annotations"][:1]})
    with pytest.raises(DataError, match="question_id 100 occurs twice"):
        benchmark.open(str(data), "", StandardOptions())
    with pytest.raises(DataError, match="none of v2_OpenEnded_mscoco_train2014_questions.json"):
        benchmark.open(str(data), "", StandardOptions(split="train"))
    dumped(file, {"annotations": [{"question_id": 100}]})
    with pytest.raises(DataError, match="have no annotation"):
        benchmark.open(str(file), "", StandardOptions())
    dumped(tmp_path / "val.json", [{"image": "a.jpg"}])
    with pytest.raises(DataError, match=r"not the annotations of VizWiz .*question"):
        resolve("benchmark", "vizwiz")().open(str(tmp_path / "val.json"), "", StandardOptions())


def test_an_engine_answers_and_a_missing_image_is_an_error(tmp_path: Path) -> None:
    engine = tiny_engine(Path(__file__).parents[2] / "golden/minigpt4/open/llm", vocab_size=512)
    data = vqav2(tmp_path / "data")
    for row in VQA["questions"][1:]:
        file = tmp_path / "images" / "val2014" / f"COCO_val2014_{row['image_id']:012d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Images.new("RGB", (8, 8), (row["image_id"] * 15, 0, 0)).save(file)
    benchmark, options = resolve("benchmark", "vqav2")(), StandardOptions(max_new_tokens=3, shots=0)
    questions = Questions(benchmark.open(str(data), str(tmp_path / "images"), options), max_bad_share=0.1)
    found = benchmark.run(engine, questions, options)
    assert (found.scores["count"], found.scores["errors"]) == (15, 1)
    assert "000000000001.jpg" in str(found.predictions[0].error) and 0 <= found.scores["metrics"]["accuracy"] <= 1
    for file in data.glob("*val2014*"):
        shutil.copy(file, file.with_name(file.name.replace("val", "train")))
    examples = StandardOptions(shots=2, shots_path=str(data))
    shown = benchmark.open(str(data), str(tmp_path / "images"), examples)[1].messages
    assert [m.role for m in shown] == ["user", "assistant"] * 2 + ["user"]
    assert all("train2014" in m.media[0].source for m in shown[:-1:2])


def test_an_evaluation_with_published_entries_finds_its_files(tmp_path: Path) -> None:
    """A file for VizWiz and GQA, a folder for OK-VQA; other names of the files lie one folder deeper."""
    pair(tmp_path / "okvqa", "OpenEnded_mscoco_val2014_questions_clean.json", "mscoco_val2014_annotations_clean.json")
    rows = [{k: row[k] for k in ("question_id", "image_id", "question")} for row in VQA["questions"]]
    dumped(tmp_path / "okvqa" / "okvqa_test_split.json", rows)
    dumped(tmp_path / "gqa" / "testdev_balanced_questions.json", GQA["questions"])
    vizwiz(tmp_path / "vizwiz")
    textvqa(tmp_path / "textvqa")
    given = {
        "okvqa": tmp_path / "okvqa",
        "gqa": tmp_path / "gqa" / "testdev_balanced_questions.json",
        "vizwiz": tmp_path / "vizwiz" / "val.json",
        "textvqa": tmp_path / "textvqa" / "TextVQA_0.5.1_val.json",
    }
    entries = {
        name: {"eval_file_path": str(path), "img_path": str(tmp_path), "max_new_tokens": 20, "batch_size": 10}
        for name, path in given.items()
    }
    model = {"arch": "tiny", "model_type": "minigpt4"}
    cfg = load_config({"model": model, "evaluation_datasets": entries, "run": {"task": "image_text_pretrain"}})
    counts = {}
    for name in entries:
        asked = asked_of(cfg, name, {})
        counts[name] = len(asked.read(None))  # type: ignore[arg-type]
        assert (asked.options.batch_size, asked.options.max_new_tokens) == (10, 20)
        assert len(
            resolve("benchmark", name)().open(str(tmp_path if name != "textvqa" else given[name]), "", asked.options)
        )
    assert counts == {"okvqa": 16, "gqa": 11, "vizwiz": 16, "textvqa": 16}
