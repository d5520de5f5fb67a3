"""Open answers: written in the form of those who judge them; Open-VQA's values for comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vlm.common.errors import DataError
from vlm.runners.evaluate.run import table
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.base import Prediction, Questions
from vlm.tasks.benchmarks.open_vqa import accuracy
from vlm.tasks.benchmarks.standard.base import StandardBenchmark, StandardOptions
from vlm.tasks.benchmarks.standard.open.chinese import LlavaZh, OwlEvalZh
from vlm.tasks.benchmarks.standard.open.llava_bench import LlavaBench
from vlm.tasks.benchmarks.standard.open.mm_vet import MmVet
from vlm.tasks.benchmarks.standard.open.owleval import OwlEval
from vlm.tasks.benchmarks.standard.stored import score_file
from vlm.tasks.scoring.statistics import difference

from ..asked import Asked

LLAVA_ZH = [
    {"id": f"00{k}", "image": f"COCO_val2014_00{k}.jpg", "instruction": f"问题{k}？", "type": t, "question_id": k}
    for k, t in enumerate(["conv", "detail", "complex", "conv", "detail", "complex"])
]
OWL_ZH = [
    {"image": f"{k}.jpg", "question_id": k, "question": f"为什么{k}？", "type": t}
    for k, t in enumerate(["reasoning", "ocr", "vqa", "caption", "vqa"], start=1)
]
OWL = [
    {"image": f"{k}.jpg", "question_id": k, "question": f"Why {k}?", "ability": "a,b,e", "category": ["single_turn"]}
    for k in range(1, 6)
]
LLAVA = [
    {"question_id": k, "image": f"00{k}.jpg", "text": f"What {k}?", "category": c}
    for k, c in enumerate(["conv", "detail", "complex", "conv", "detail"])
]
MM_VET = {
    f"v1_{k}": {"imagename": f"v1_{k}.png", "imagesource": "", "question": f"x{k}?", "answer": "-1<AND>-5"}
    | {"capability": ["ocr", "math"]}
    for k in range(5)
}


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES: dict[type[StandardBenchmark], tuple[str, str, str, int]] = {
    LlavaZh: ("llava_test_zh_questions.json", json.dumps(LLAVA_ZH), "", 6),
    OwlEvalZh: ("owl_test_zh_questions.json", json.dumps(OWL_ZH), "", 5),
    OwlEval: ("questions.jsonl", lines(OWL), "cases", 5),
    LlavaBench: ("questions.jsonl", lines(LLAVA), "images", 5),
    MmVet: ("mm-vet.json", json.dumps(MM_VET), "images", 5),
}
BENCHMARKS = list(FILES)


def written(folder: Path, benchmark: type[StandardBenchmark]) -> Path:
    name, text, images, _ = FILES[benchmark]
    (folder / name).write_text(text, encoding="utf-8")
    (folder / images).mkdir(exist_ok=True)
    for item in benchmark.open(str(folder), "", StandardOptions()).items:
        Image.new("RGB", (4, 4)).save(folder / images / Path(str(item.media[0].source)).name)
    return folder


class Engine(Asked):
    """Answers with the name of the image."""

    def default_generation(self, base):
        return base

    def generate(self, conversations, generation, batch_size=16):
        return [f" {Path(c[-1].media[0].source).name}，一\n" for c in conversations]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda b: b.__name__)
def test_questions_are_asked_about_images_in_the_published_folders(benchmark, tmp_path: Path) -> None:
    opened = benchmark.open(str(written(tmp_path, benchmark)), "", StandardOptions())
    result = benchmark().run(Engine(), Questions(opened), StandardOptions())
    assert len(opened) == FILES[benchmark][3]
    assert all(Path(item.media[0].source).is_file() for item in opened.items)
    assert opened.prompts == [item.question for item in opened.items]
    assert result.metrics == () and result.scores["count"] == len(opened) and len(result.files) == 1
    assert table(result) == f" {len(opened)} answers; others judge them, see the written file"


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda b: b.__name__)
def test_a_written_file_is_read_back(benchmark, tmp_path: Path) -> None:
    folder = written(tmp_path, benchmark)
    opened = benchmark.open(str(folder), "", StandardOptions())
    first = benchmark().run(Engine(), Questions(opened), StandardOptions())
    ((name, text),) = first.files.items()
    (tmp_path / name).write_text(text, encoding="utf-8")
    again = score_file(benchmark, str(folder), "", [str(tmp_path / name)], StandardOptions())
    assert [p.answer.strip() for p in again.predictions] == [p.answer.strip() for p in first.predictions]
    assert again.scores == first.scores


def file_of(benchmark: type[StandardBenchmark], folder: Path, answers: list[Answer]) -> str:
    opened = benchmark.open(str(written(folder, benchmark)), "", StandardOptions())
    (text,) = benchmark.score(opened.items, [answers], StandardOptions()).files.values()
    return text


def test_predictions_in_chinese_have_the_published_form(tmp_path: Path) -> None:
    found = json.loads(file_of(LlavaZh, tmp_path, [Answer(f"答{k}") for k in range(6)]))
    assert list(found[2].items()) == [
        ("id", "002"), ("image", "COCO_val2014_002.jpg"), ("instruction", "问题2？"), ("output", "答2"),
        ("type", "complex"), ("question_id", 2),
    ]  # fmt: skip
    text = file_of(OwlEvalZh, tmp_path, [Answer("一")] * 5)
    assert list(json.loads(text)[0]) == ["image", "question_id", "question", "outout", "type"]
    assert text.startswith('[\n  {\n    "image": "1.jpg",\n    "question_id": 1,\n    "question": "为什么1？",\n')


def test_files_for_judges_have_their_form(tmp_path: Path) -> None:
    answers = [Answer("x = -5"), Answer("", "out of memory"), *[Answer("x")] * 3]
    assert json.loads(file_of(MmVet, tmp_path, answers)) == dict(zip(MM_VET, answers))
    rows = [json.loads(line) for line in file_of(LlavaBench, tmp_path, answers).splitlines()]
    assert [row["question_id"] for row in rows] == [0, 1, 2, 3, 4]  # the judge pairs lines by their order
    assert list(rows[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert rows[0]["text"] == "x = -5" and rows[1]["text"] == "" and len({row["answer_id"] for row in rows}) == 5
    row = json.loads(file_of(OwlEval, tmp_path, answers).splitlines()[0])
    assert row == {"image": "1.jpg", "question_id": 1, "question": "Why 1?", "answer": "x = -5", "model_id": "vlm"}


def test_a_lost_answer_is_counted(tmp_path: Path) -> None:
    opened = MmVet.open(str(written(tmp_path, MmVet)), "", StandardOptions(protocol="lmms"))
    assert opened.prompts[0] == (
        "First please perform reasoning, and think step by step to provide best answer to the following question: \n\n"
        "x0?"
    )
    result = MmVet.score(opened.items, [[Answer(""), *[Answer("x")] * 4]], StandardOptions(protocol="lmms"))
    assert table(result) == " 4 answers, 1 without an answer; others judge them, see the written file"


def test_another_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "mm-vet.json").write_text(json.dumps(OWL_ZH))
    with pytest.raises(DataError, match=r"not the annotations of MM-Vet .*\n?.*mm-vet.json"):
        MmVet.open(str(tmp_path), "", StandardOptions())
    (tmp_path / "owl_test_zh_questions.json").write_text(json.dumps([OWL_ZH[0]] * 2))
    with pytest.raises(DataError, match="id 1 occurs twice"):
        OwlEvalZh.open(str(tmp_path), "", StandardOptions())


def test_open_vqa_has_a_value_for_each_question() -> None:
    def said(rights: str, seed: int | None = None) -> list[Prediction]:
        return [
            Prediction(str(k), "q", "a", "r", right == "1", {"type": "Color" if k < 2 else "Place"}, seed)
            for k, right in enumerate(rights)
        ]

    lost = Prediction("9", "", "", error="no image")
    once = accuracy([*said("1101"), lost])
    assert once.value() == 0.75 and once.by_group() == {"Color": (1.0, 2), "Place": (0.5, 2)}
    twice = accuracy([*said("1101", 0), *said("1001", 1)])
    assert twice.rows[:, 0].tolist() == [1.0, 0.5, 0.0, 1.0]
    assert difference(once, twice, draws=50).changed == {"0": 0.0, "1": -0.5, "2": 0.0, "3": 0.0}
    assert accuracy([Prediction("0", "q", "a")]).value() is None
