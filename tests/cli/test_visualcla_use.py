"""VisualCLA at the command line: chat with folders as they are, the Chinese question sets, what cannot be done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlm.cli.main import main
from vlm.common.errors import printable
from vlm.config.api import load_config
from vlm.inference.load import read_source
from vlm.models.llm.linear.int8 import unsupported
from vlm.pages.compare import read_predictions
from vlm.systems.visualcla.api import chat, get_model_and_tokenizer_and_processor

OPEN = Path(__file__).parents[1] / "golden" / "visualcla" / "open"
EVAL = str(Path(__file__).parents[2] / "eval_configs" / "visualcla_eval.yaml")
MERGED = str(OPEN / "merged_model")
THREE = {name: str(OPEN / name) for name in ("text_model", "vision_model", "lora_model")}
IMAGE = str(OPEN / "image.png")
GREEDY = ["--greedy", "--repetition-penalty", "1", "--max-new-tokens", "12"]
SIZES = ["model.image_size=28", "model.num_query_token=5"]
LLAVA = [
    {"id": "1", "image": "1.jpg", "instruction": "描述图像。", "type": "conv", "question_id": 0},
    {"id": "1", "image": "1.jpg", "instruction": "上面有什么？", "type": "detail", "question_id": 1},
    {"id": "2", "image": "2.jpg", "instruction": "描述图像。", "type": "complex", "question_id": 2},
]
OWL = [
    {"image": "1.jpg", "question_id": 1, "question": "描述图像。", "type": "reasoning"},
    {"image": "2.jpg", "question_id": 2, "question": "为什么？", "type": "knowledeg vqa"},
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def published(text: str, image: str | None = IMAGE) -> str:
    """The greedy answer by the Python functions."""
    model, *_ = get_model_and_tokenizer_and_processor(MERGED, default_device="cpu")
    config: dict[str, Any] = {"max_new_tokens": 12, "no_repeat_ngram_size": 15}
    return chat(model, image, text, generation_config=config)[0]


def test_chat_with_the_merged_folder_and_with_three(capsys: pytest.CaptureFixture[str]) -> None:
    expected = published("描述图像。")
    paths = [f"model.{name}={folder}" for name, folder in THREE.items()]
    asked = ["--only-cpu", "--image", IMAGE, "--ask", "描述图像。", *GREEDY]
    assert main(["chat", MERGED, *asked[:1], "--image_file", *asked[2:]]) == 0
    assert main(["chat", EVAL, *asked, "--options", *paths, *SIZES]) == 0
    merged = ["--options", f"model.visualcla_model={MERGED}", *SIZES]
    assert main(["chat", EVAL, *asked, *merged]) == 0
    assert capsys.readouterr().out == 3 * (printable(expected) + "\n")


def test_chat_without_a_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", MERGED, "--only-cpu", "--ask", "描述图像。", *GREEDY]) == 0
    assert capsys.readouterr().out == printable(published("描述图像。", None)) + "\n"


def test_the_merged_folder_states_its_sizes() -> None:
    cfg = read_source(MERGED, ["model.generation.top_k=7"])
    assert (cfg.model.image.config.size, cfg.model.params["num_query_token"]) == (28, 5)
    assert cfg.model.generation.given["top_k"] == 7 and cfg.model.generation.given["no_repeat_ngram_size"] == 15
    again = load_config(cfg.resolved, check="none")
    assert again.model.generation.given == cfg.model.generation.given


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--image", "nowhere.png"], "nowhere.png: no such file"),
        (["--gpus", "97"], "--only-cpu and --gpus 97 exclude each other"),
        (["--ask", "<ImageHere> 是什么？"], "<ImageHere>"),
    ],
)
def test_what_cannot_be_done(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", MERGED, "--only-cpu", "--ask", "描述图像。", *flags, *GREEDY]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(unsupported() is not None, reason=f"int8 on a CPU: {unsupported()}")
def test_8_bits_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", MERGED, "--only-cpu", "--load-in-8bit", "--ask", "描述图像。", *GREEDY]) == 0
    assert capsys.readouterr().out.strip()


def test_the_delta_alone(capsys: pytest.CaptureFixture[str]) -> None:
    delta = str(Path(MERGED).parent / "lora_model")
    assert main(["chat", delta, "--only-cpu", "--ask", "描述图像。"]) == 2
    said = capsys.readouterr().err
    assert "lora_model: an adapter alone" in said and "vlm weights merge" in said


def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", MERGED, "--gpus", "0,97", "--ask", "描述图像。"]) == 2
    assert "was asked for, but this machine has" in capsys.readouterr().err


def ask(folder: Path, questions: list[dict[str, Any]], *more: str) -> int:
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (50, 40), "red" if name == "1.jpg" else "green").save(folder / name)
    (folder / "questions.json").write_text(json.dumps(questions, ensure_ascii=False), encoding="utf-8")
    data = ["--data", str(folder / "questions.json"), "--media-root", str(folder)]
    return main(["generate", MERGED, *data, "--only-cpu", *GREEDY, *more])


@pytest.mark.parametrize(
    "questions, prompt, field, order",
    [
        (
            LLAVA,
            ["--prompt", "{instruction}"],
            "output",
            ["id", "image", "instruction", "output", "type", "question_id"],
        ),
        (OWL, [], "outout", ["image", "question_id", "question", "outout", "type"]),
    ],
)
def test_question_sets_in_the_published_form(questions, prompt, field, order, tmp_path: Path) -> None:
    target = tmp_path / "predictions.json"
    asked = [*prompt, "--answer-field", field, "--output", str(target)]
    assert ask(tmp_path, questions, *asked) == 0
    text = target.read_text(encoding="utf-8")
    rows = json.loads(text)
    assert text == json.dumps(rows, ensure_ascii=False, indent=2)  # to the byte as published files are written
    assert [list(row) for row in rows] == [order] * len(questions)
    assert [{k: v for k, v in row.items() if k != field} for row in rows] == questions
    assert rows[0][field] == published("描述图像。", str(tmp_path / "1.jpg"))
    assert read_predictions(target).answer(str(questions[0]["question_id"])) == rows[0][field]
    assert not list(tmp_path.glob("*.part-*"))
    # a prediction file as input: the old answer is replaced
    again = tmp_path / "again.json"
    data = ["--data", str(target), "--media-root", str(tmp_path), "--output", str(again), "--answer-field", field]
    assert main(["generate", MERGED, *data, *prompt, "--only-cpu", *GREEDY]) == 0
    assert again.read_text(encoding="utf-8") == text


def test_drawn_answers_are_the_same_every_time(tmp_path: Path) -> None:
    found = []
    for name, more in (("a", []), ("b", ["--batch-size", "1"]), ("c", ["--seed", "7"])):
        target = tmp_path / f"{name}.json"
        asked = ["--answer-field", "outout", "--output", str(target), "--max-new-tokens", "8", *more]
        data = ["--data", str(tmp_path / "questions.json"), "--media-root", str(tmp_path)]
        if not found:
            assert ask(tmp_path, OWL, "--output", str(tmp_path / "x.jsonl")) == 0
        assert main(["generate", MERGED, *data, "--only-cpu", *asked]) == 0
        found.append(target.read_text(encoding="utf-8"))
    assert found[0] == found[1] != found[2]


def test_missing_images_are_reported_before_anything_is_loaded(tmp_path: Path, capsys) -> None:
    lost = [{"image": f"{k}.png", "question_id": k, "question": "?", "type": "vqa"} for k in range(3)]
    assert ask(tmp_path, lost, "--answer-field", "outout", "--output", str(tmp_path / "out.json")) == 2
    assert "0.png: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
