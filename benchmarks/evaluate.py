"""Questions per second: ``vlm eval`` against lmms-eval, which drives the same model through its plug-in.

    python -m benchmarks.evaluate --model output/quickstart/stage2        # needs lmms-eval: make test-lmms, .venv-lmms

The embedded model is asked ``--count`` questions about as many drawn images, greedily, with the same length. Each
side reads the questions from files, asks, scores and writes its results; the model is loaded before, and nothing is
kept from one side to the next. lmms-eval runs with its default batch size, 1, and with that of ``vlm eval``; each side
answers a few other questions first.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import median, write
from vlm.config.api import Config
from vlm.inference.engine import Engine
from vlm.inference.load import read_source

LENGTH = 20
BATCH = 64
WARM = 200
"""Questions that each side answers before it is measured."""


def task_file(folder: Path, questions: Path) -> Path:
    """The questions as a task of lmms-eval."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    records = [{**row, "image": str(folder / row["image"])} for row in rows]
    (folder / "drawn.json").write_text(json.dumps(records))
    file = folder / "task" / "drawn.yaml"
    file.parent.mkdir()
    content = {
        "task": "drawn",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "drawn.json")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": "image",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": LENGTH, "until": [], "temperature": 0, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    file.write_text(json.dumps(content))  # which is YAML
    return file


def fresh(engine: Engine) -> Engine:
    """The same model, with nothing remembered."""
    return Engine(engine.model, engine.processor, config=engine.config, device=engine.device)


def our_side(cfg: Config, engine: Engine, folder: Path, answers: list[str], score: list[float]) -> Callable[[], None]:
    """``vlm eval`` on the questions as a dataset; what it answered replaces ``answers``."""
    from vlm.runners.evaluate.run import run_evaluation

    def run() -> None:
        found = run_evaluation(cfg, engine=fresh(engine), output=folder / "ours")
        lines = (folder / "ours" / "evaluation_answers.jsonl").read_text().splitlines()
        answers[:] = [json.loads(line)["answer"] for line in lines]
        score[:] = [found["drawn"]["right"]["overall"]]

    return run


def their_side(
    engine: Engine, file: Path, batch_size: int, answers: list[str], score: list[float]
) -> Callable[[], None]:
    """lmms-eval on the task file, with its own reading, asking and scoring."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from vlm.tasks.benchmarks.lmms.plugin import Vlm

    def run() -> None:
        manager = TaskManager(include_path=str(file.parent), include_defaults=False, model_name="vlm")
        model = Vlm(run=fresh(engine), batch_size=batch_size)
        found = simple_evaluate(model=model, tasks=["drawn"], task_manager=manager, log_samples=True, bootstrap_iters=0)
        samples = sorted(found["samples"]["drawn"], key=lambda sample: sample["doc_id"])
        answers[:] = [sample["filtered_resps"][0] for sample in samples]
        score[:] = [found["results"]["drawn"]["exact_match,none"]]

    return run


@dataclass
class Side:
    """One way to ask, with what it answered last."""

    run: Callable[[], None]
    answers: list[str]
    score: list[float]


def sides_of(engine: Engine, model: str, folder: Path, count: int) -> dict[str, Side]:
    """Draw the questions and make the three sides."""
    from vlm.datasets.synthetic.export import write_questions

    questions = write_questions(folder, count, 7, name="drawn")
    records = f"{{ann_path: {questions}, image_path: {folder}}}"
    entry = f"{{format: table, build_info: {records}, batch_size: {BATCH}, max_new_tokens: {LENGTH}}}"
    cfg = read_source(model, [f"evaluation_datasets={{drawn: {entry}}}"])
    file = task_file(folder, questions)
    found: list[tuple[list[str], list[float]]] = [([], []) for _ in range(3)]
    return {
        "vlm eval": Side(our_side(cfg, engine, folder, *found[0]), *found[0]),
        "lmms-eval, batch size 1": Side(their_side(engine, file, 1, *found[1]), *found[1]),
        f"lmms-eval, batch size {BATCH}": Side(their_side(engine, file, BATCH, *found[2]), *found[2]),
    }


def measure(model: str, count: int, rounds: int) -> dict[str, Any]:
    """Questions per second of each side, and whether their answers are the same."""
    engine = Engine.load(model)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for side in sides_of(engine, model, Path(name) / "few", WARM).values():
            side.run()
        sides = sides_of(engine, model, Path(name) / "all", count)
        for _ in range(rounds):
            for key, side in sides.items():
                gc.collect()
                start = time.perf_counter()
                side.run()
                seconds.setdefault(key, []).append(time.perf_counter() - start)
    rates = {key: round(count / median(times), 1) for key, times in seconds.items()}
    ours, *theirs = sides.values()
    return {
        "questions": count,
        "questions_per_second": rates,
        "ratio": {key: round(rates["vlm eval"] / rate, 2) for key, rate in rates.items() if key != "vlm eval"},
        "seconds": {key: [round(s, 2) for s in times] for key, times in seconds.items()},
        "accuracy": {key: side.score[0] for key, side in sides.items()},
        "different_answers": [sum(a != b for a, b in zip(ours.answers, s.answers, strict=True)) for s in theirs],
        "batch_size": BATCH,
        "max_new_tokens": LENGTH,
        "lmms_eval": version("lmms-eval"),
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="output/quickstart/stage2")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=1, help="measured rounds")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args.model, args.count, args.rounds)
    print(json.dumps(result, indent=1))
    print(write("evaluate_cpu", result))


if __name__ == "__main__":
    main()
