"""Questions per second: ``vlm eval`` against lmms-eval, which drives the same model through its plug-in.

    python -m benchmarks.evaluate --model output/quickstart/stage2        # needs lmms-eval: make test-lmms, .venv-lmms

The embedded model is asked ``--count`` questions about as many drawn pictures, greedily, with the same length. Each
side reads the questions from files, asks, scores and writes its results; the model is loaded before, and nothing is
kept from one side to the next. lmms-eval runs with its default batch size, 1, and with that of ``vlm eval``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import alternate, median, write
from vlm.config.api import Config
from vlm.inference.engine import Engine
from vlm.inference.load import read_source

LENGTH = 20
BATCH = 64


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


def our_side(
    cfg: Config, engine: Engine, folder: Path, questions: Path, answers: list[str], score: list[float]
) -> Callable[[], None]:
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


def measure(model: str, count: int, rounds: int, threads: int) -> dict[str, Any]:
    """Questions per second of each side, and whether their answers are the same."""
    from vlm.datasets.synthetic.export import write_questions

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions = write_questions(folder, count, 7, name="drawn")
        entry = f"evaluation_datasets={{drawn: {{format: table, build_info: {{ann_path: {questions}, image_path: {folder}}}, batch_size: {BATCH}, max_new_tokens: {LENGTH}}}}}"
        cfg = read_source(model, [entry])
        engine = Engine.load(cfg)
        found: dict[str, tuple[list[str], list[float]]] = {}
        sides: dict[str, Callable[[], None]] = {}
        found["vlm eval"] = ([], [])
        sides["vlm eval"] = our_side(cfg, engine, folder, questions, *found["vlm eval"])
        file = task_file(folder, questions)
        for size in (1, BATCH):
            name = f"lmms-eval, batch size {size}"
            found[name] = ([], [])
            sides[name] = their_side(engine, file, size, *found[name])
        seconds = alternate(sides, rounds)
    rates = {name: round(count / median(times), 1) for name, times in seconds.items()}
    first, *others = found.values()
    return {
        "questions": count,
        "questions_per_second": rates,
        "ratio": {name: round(rates["vlm eval"] / rate, 2) for name, rate in rates.items() if name != "vlm eval"},
        "seconds": {name: [round(s, 2) for s in times] for name, times in seconds.items()},
        "accuracy": {name: score[0] for name, (_, score) in found.items()},
        "different_answers": max(sum(a != b for a, b in zip(first[0], other[0], strict=True)) for other in others),
        "batch_size": BATCH,
        "max_new_tokens": LENGTH,
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="output/quickstart/stage2")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=1, help="measured rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    result = measure(args.model, args.count, args.rounds, args.threads)
    print(json.dumps(result, indent=1))
    print(write("evaluate_cpu", result))


if __name__ == "__main__":
    main()
