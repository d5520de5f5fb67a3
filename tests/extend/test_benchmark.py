"""A benchmark and a dataset format outside the tree, in one file, run by ``vlm eval``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

PARTS = '''
"""How many letters of the expected word are in the answer; the format has no ``record``."""

from dataclasses import dataclass
from pathlib import Path

from vlm.common.registry import register_benchmark, register_dataset
from vlm.common.types import Image, Message, Sample, Text
from vlm.inference.generation import Generation
from vlm.tasks.benchmarks.base import EvalOptions, Prediction, Result, ask, prompt_of


@register_dataset("named_files")
class NamedFiles:
    """red.png -> its image, "red"."""

    @dataclass
    class Config:
        folder: str = ""

    def __init__(self, config):
        self.files = sorted(Path(config.folder).glob("*.png"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        user = Message("user", (Image(self.files[i]), Text("What color?")))
        return Sample((user, Message("assistant", (Text(self.files[i].stem),))), id=self.files[i].stem)


@register_benchmark("letters")
class Letters:
    @dataclass
    class Config(EvalOptions):
        bonus: float = 0.0

    def run(self, engine, dataset, options):
        generation = Generation(do_sample=False, max_new_tokens=options.max_new_tokens)
        predictions, images = [], 0
        for i, answer in enumerate(ask(engine, dataset, generation, options.batch_size)):
            prompt, word = prompt_of(dataset[i]), dataset[i].messages[-1].text
            images += len(prompt[-1].media)
            share = len(set(word) & set(answer)) / len(set(word))
            predictions.append(Prediction(word, prompt[-1].text, answer, word, fields={"letters": share}))
        mean = sum(p.fields["letters"] for p in predictions) / len(predictions)
        return Result({"letters": mean + options.bonus, "images": images}, predictions, card=True)
'''

CONFIG = """
plugins: [acme_letters]
model: {arch: minigpt4, model_type: tiny}
evaluation_datasets:
  colors: {format: named_files, build_info: {folder: data}, max_new_tokens: 4}
run:
  task: TASK
  benchmark: {OPTIONS}
  device: cpu
  output_dir: out
"""


@pytest.mark.parametrize("task", ["letters", "acme_letters:Letters"])
def test_benchmark_of_another_package(tmp_path: Path, task: str) -> None:
    done = evaluate(tmp_path, task, "--images", "right,none", "--allow-random")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "colors, right image:\n  letters " in done.stdout and "  images               2" in done.stdout
    scores = json.loads((tmp_path / "out" / "evaluation.json").read_text())["colors"]
    assert scores["right"]["letters"] >= 10 and (scores["right"]["images"], scores["none"]["images"]) == (2, 0)
    lines = [json.loads(line) for line in (tmp_path / "out" / "evaluation_answers.jsonl").read_text().splitlines()]
    assert [(x["image"], x["id"]) for x in lines] == [(c, n) for c in ("right", "none") for n in ("blue", "red")]
    assert "right" not in lines[0] and 0 <= lines[0]["letters"] <= 1
    card = (tmp_path / "out" / "evaluation_card.html").read_text()
    assert "<td>letters</td>" in card and "no image" in card and "bonus" in card


def test_the_format_alone_with_a_shipped_benchmark(tmp_path: Path) -> None:
    done = evaluate(tmp_path, "question_answering", "--allow-random", options="judge: open")
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads((tmp_path / "out" / "evaluation.json").read_text())["colors"]
    assert scores["right"]["count"] == 2 and scores["right"]["by_type"] == {}


@pytest.mark.heavy
def test_faults(tmp_path: Path) -> None:
    done = evaluate(tmp_path, "letters", "--judge", "open")
    assert done.returncode == 2 and "unknown key 'judge' (allowed: batch_size, bonus" in done.stderr
    done = evaluate(tmp_path, "acme_letters:NamedFiles", options="")
    assert done.returncode == 2 and "not registered as task or benchmark" in done.stderr
    done = evaluate(tmp_path, "leters")
    assert done.returncode == 2 and "did you mean 'letters'" in done.stderr
    done = evaluate(tmp_path, "letters", "--options", "run.benchmark.bonus=many")
    assert done.returncode == 2 and "run.benchmark.bonus" in done.stderr and "Traceback" not in done.stderr


def evaluate(folder: Path, task: str, *more: str, options: str = "bonus: 10.0") -> subprocess.CompletedProcess:
    (folder / "acme_letters.py").write_text(PARTS)
    (folder / "data").mkdir(exist_ok=True)
    for color in ("red", "blue"):
        Image.new("RGB", (40, 30), color).save(folder / "data" / f"{color}.png")
    (folder / "eval.yaml").write_text(CONFIG.replace("TASK", task).replace("OPTIONS", options))
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vlm.cli", "eval", "eval.yaml", "--trust", *more]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
