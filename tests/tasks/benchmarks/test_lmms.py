"""With lmms-eval installed (`make test-lmms`): our model in it, its task files here, and the same answers both ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.inference.small import write_config
from tests.tasks.benchmarks.lmms_files import COLORS, choice, write_task
from vlm.cli.main import main
from vlm.common.errors import ConfigError, DataError
from vlm.common.trust import trusting
from vlm.inference.engine import Engine
from vlm.runners.evaluate.run import run_evaluation
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.base import Questions
from vlm.tasks.benchmarks.lmms import benchmark

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-lmms runs these tests")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from vlm.config.api import EvaluationFiles
from vlm.tasks.benchmarks.lmms.plugin import Vlm, VlmSimple

pytestmark = pytest.mark.lmms

Lmms = benchmark.Lmms
UTILS = """
def shown(doc):
    return [doc["picture"]]

def asked(doc):
    return "Say: " + doc["question"]

def scored(doc, results):
    return {"letters": {"n": doc["n"], "letters": len(results[0])}}

def total(items):
    return float(sum(item["letters"] for item in items))
"""
WITH_FUNCTIONS = {
    "doc_to_visual": "!function utils.shown",
    "doc_to_text": "!function utils.asked",
    "process_results": "!function utils.scored",
    "metric_list": [{"metric": "letters", "aggregation": "!function utils.total", "higher_is_better": True}],
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data that lmms-eval reads are kept in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(config: Path) -> Engine:
    return Engine.load(config)


def with_functions(folder: Path) -> Path:
    file = write_task(folder, "letters", **WITH_FUNCTIONS)
    (folder / "utils.py").write_text(UTILS)
    text = file.read_text()
    for name in ("shown", "asked", "scored", "total"):
        text = text.replace(f"'!function utils.{name}'", f"!function utils.{name}")
    file.write_text(text)
    return file


def by_lmms(model: Any, file: Path) -> tuple[dict[str, Any], list[Any]]:
    """Scores and answers of lmms-eval."""
    manager = TaskManager(include_path=str(file.parent), include_defaults=False, model_name="vlm")
    found = simple_evaluate(model=model, tasks=[file.stem], task_manager=manager, log_samples=True, bootstrap_iters=0)
    samples = sorted(found["samples"][file.stem], key=lambda sample: sample["doc_id"])
    return found["results"][file.stem], [sample["filtered_resps"] for sample in samples]


def by_us(engine: Engine, file: Path, **options: Any) -> Any:
    given = Lmms.Config(batch_size=3, **{"empty": "wrong"} | options)
    return Lmms().run(engine, Questions(Lmms().open(str(file), "", given)), given)


def test_lmms_eval_knows_the_model_by_its_name() -> None:
    assert get_model("vlm") is Vlm and get_model("vlm", force_simple=True) is VlmSimple


@pytest.mark.parametrize("kind", [Vlm, VlmSimple])
@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_answers_and_scores_are_the_same_both_ways(kind: Any, batch_size: Any, engine: Engine, tmp_path: Path) -> None:
    file = write_task(tmp_path)
    scores, answers = by_lmms(kind(run=engine, batch_size=batch_size), file)
    ours = by_us(engine, file)
    assert [[p.answer] for p in ours.predictions] == answers
    assert ours.scores["metrics"]["exact_match"] == scores["exact_match,none"]
    question = "Which color is picture 0?"
    plain = {"max_new_tokens": 6, "do_sample": False, "repetition_penalty": 1.0, "stop": ("###",)}
    assert ours.predictions[0].answer == engine.chat(question, image=str(tmp_path / "0.png"), **plain)
    assert ours.predictions[0].question == question and ours.predictions[3].reference == COLORS[3]


def test_multiple_choice_is_the_same_both_ways(engine: Engine, tmp_path: Path) -> None:
    file = write_task(tmp_path, **choice())
    scores, pairs = by_lmms(VlmSimple(run=engine, batch_size=2), file)
    ours = by_us(engine, file)
    assert ours.scores["metrics"]["acc"] == scores["acc,none"]
    for prediction, own in zip(ours.predictions, pairs, strict=True):
        losses = [loss for loss, _ in own]
        assert list(prediction.fields["losses"].values()) == pytest.approx(losses, abs=1e-4)
        assert prediction.answer == COLORS[losses.index(min(losses))]
        assert prediction.right == (prediction.answer == prediction.reference)


def test_functions_of_the_task_ask_and_score_if_they_are_trusted(engine: Engine, tmp_path: Path) -> None:
    file = with_functions(tmp_path)
    with pytest.raises(ConfigError, match=r"letters\.yaml: .*!function utils\.\w+ would run .* only with --trust"):
        by_us(engine, file)
    scores, answers = by_lmms(Vlm(run=engine), file)
    with trusting():
        ours = by_us(engine, file)
    assert [[p.answer] for p in ours.predictions] == answers
    assert ours.predictions[1].question == "Say: Which color is picture 1?"
    assert ours.scores["metrics"] == {"letters": scores["letters,none"]}
    assert ours.scores["metrics"]["letters"] == sum(len(p.answer) for p in ours.predictions)
    assert not ours.metrics and ours.scores["intervals"] == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"doc_to_text": "{{question.__class__}}"}, r"doc_to_text: the template .* only with --trust"),
        ({"dataset_path": "somebody/data"}, r"dataset_path: somebody/data would load data from elsewhere"),
        ({"output_type": "loglikelihood"}, "output_type is loglikelihood, read are generate_until"),
        ({"task": ["a", "b"]}, "a group of tasks, not one task"),
        ({"task": None}, "no task of lmms-eval in it"),
        ({"doc_to_text": "{{questoin}}"}, "'questoin' is undefined"),
        ({"test_split": "val"}, "val"),
        ({"dataset_kwargs": {"data_files": {"test": "gone.json"}}}, "gone.json"),
        ({"metric_list": [{"metric": "nothing"}]}, "nothing"),
        ({"generation_kwargs": {"temprature": 1}}, "temprature.*temperature"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_one_message(
    changes: dict[str, Any], words: str, engine: Engine, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        by_us(engine, write_task(tmp_path, **changes))


def test_a_missing_picture_ends_lmms_eval_and_is_counted_here(engine: Engine, tmp_path: Path) -> None:
    file = write_task(tmp_path)
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"colors, doc_id 2: .*2\.png"):
        by_lmms(Vlm(run=engine, batch_size=4), file)
    given = Lmms.Config()
    questions = Questions(Lmms().open(str(file), "", given), max_bad_share=0.5)
    ours = Lmms().run(engine, questions, given)
    assert (ours.scores["count"], ours.scores["errors"]) == (4, 1)
    assert "2.png" in str(ours.predictions[2].error) and ours.predictions[2].right is None


def test_an_empty_answer_is_counted_or_scored(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Answer(text) for text in ("red", " ", "red", "white", "red")]
    monkeypatch.setattr(benchmark, "ask", lambda *_: answers)
    file = write_task(tmp_path)
    ours, as_theirs = by_us(engine, file, empty="error"), by_us(engine, file)
    assert (ours.scores["count"], ours.scores["errors"], ours.scores["metrics"]["exact_match"]) == (4, 1, 0.5)
    assert ours.predictions[1].error == "the answer is empty"
    assert (as_theirs.scores["count"], as_theirs.scores["metrics"]["exact_match"]) == (5, 0.4)


def test_a_missing_picture_of_multiple_choice(engine: Engine, tmp_path: Path) -> None:
    file = write_task(tmp_path, **choice())
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"colors, doc_id 2: .*2\.png"):
        by_lmms(VlmSimple(run=engine, batch_size=4), file)
    given = Lmms.Config(batch_size=2)
    ours = Lmms().run(engine, Questions(Lmms().open(str(file), "", given), max_bad_share=0.5), given)
    assert (ours.scores["count"], ours.scores["errors"]) == (4, 1) and "2.png" in str(ours.predictions[2].error)


def test_a_crash_of_the_model_is_an_error(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: Any, **more: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "submit_all", crash)
    with pytest.raises(RuntimeError, match="out of memory"):
        by_lmms(Vlm(run=engine, batch_size=4), write_task(tmp_path))


def test_repeats_are_sampled_with_seeds_of_their_own(engine: Engine, tmp_path: Path) -> None:
    changes = {"repeats": 3, "generation_kwargs": {"max_new_tokens": 6, "temperature": 1.5, "do_sample": True}}
    filters = [{"name": "all", "filter": [{"function": "take_first_k", "k": 3}, {"function": "take_first"}]}]
    file = write_task(tmp_path, **changes, filter_list=filters)
    model = Vlm(run=engine, batch_size=2)
    scores, answers = by_lmms(model, file)
    ours = by_us(engine, file)
    assert [[p.answer] for p in ours.predictions] == answers
    assert any(p.answer != repeat for p in ours.predictions for repeat in p.fields["repeats"])
    assert ours.scores["metrics"]["exact_match"] == scores["exact_match,all"]


def test_runs_with_seeds_are_averaged(engine: Engine, tmp_path: Path) -> None:
    ours = by_us(engine, write_task(tmp_path), seeds=[0, 1])
    assert len(ours.predictions) == 10 and {p.seed for p in ours.predictions} == {0, 1}
    assert [p.answer for p in ours.predictions[:5]] != [p.answer for p in ours.predictions[5:]]
    assert len(ours.scores["runs"]["exact_match"]) == 2


def test_a_sample_and_a_folder_of_pictures(engine: Engine, tmp_path: Path) -> None:
    file = write_task(tmp_path)
    records = json.loads((tmp_path / "colors.json").read_text())
    (tmp_path / "colors.json").write_text(json.dumps([{**r, "picture": f"{r['n']}.png"} for r in records]))
    (tmp_path / "pictures").mkdir()
    for k in range(5):
        (tmp_path / f"{k}.png").rename(tmp_path / "pictures" / f"{k}.png")
    given = Lmms.Config(limit=2, seed=3)
    ours = Lmms().run(engine, Questions(Lmms().open(str(file), str(tmp_path / "pictures"), given)), given)
    assert len(ours.predictions) == 2 and ours.scores["errors"] == 0
    _, answers = by_lmms(Vlm(run=engine, media_root=str(tmp_path / "pictures")), file)
    assert [[p.answer] for p in ours.predictions] == [answers[int(p.id)] for p in ours.predictions]


def test_an_entry_of_a_configuration_is_resumable_and_takes_image_controls(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = EvaluationFiles(str(write_task(tmp_path)), benchmark="lmms", batch_size=2)
    cfg = engine.config
    assert cfg is not None
    monkeypatch.setattr(cfg, "evaluation_files", {"mine": files})
    found = run_evaluation(cfg, engine=engine, images=["right", "none"], output=tmp_path / "out")
    assert {c: (s["count"], s["benchmark"]) for c, s in found["mine"].items()} == {
        "right": (5, "colors"),
        "none": (5, "colors"),
    }
    lines = [json.loads(line) for line in (tmp_path / "out" / "evaluation_answers.jsonl").read_text().splitlines()]
    assert [(r["image"], r["id"]) for r in lines] == [(c, str(k)) for c in ("right", "none") for k in range(5)]
    card = json.loads((tmp_path / "out" / "evaluation_card.json").read_text())
    assert "colors" in str(card["datasets"]["mine"])


def test_the_command(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = with_functions(tmp_path)
    arguments = ["eval", str(config), "--benchmark", "lmms", "--data", str(file), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "only with --trust" in capsys.readouterr().err
    assert main([*arguments, "--trust", "--limit", "2"]) == 0
    assert "letters" in capsys.readouterr().out
    scores = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert scores["lmms"]["right"]["count"] == 2


def test_the_task_of_the_guide(engine: Engine, tmp_path: Path) -> None:
    write_task(tmp_path)
    guide = Path(__file__).parents[3] / "docs" / "guides" / "lmms_eval.md"
    text = guide.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    file = tmp_path / "drawn.yaml"
    file.write_text(
        text.replace("../output/quickstart/data/three.jsonl", "colors.json").replace(": image", ": picture")
    )
    assert len(by_us(engine, file).predictions) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "needs a model\n  fix: --model_args run="),
        ({"run": "x", "bathc_size": 2}, "argument of --model vlm.*bathc_size.*batch_size"),
        ({"run": "x", "batch_size": "many"}, "batch_size is 'many'"),
    ],
)
def test_wrong_arguments_of_the_model_are_one_message(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Vlm(**arguments)


@pytest.mark.heavy
def test_two_processes_share_the_documents(config: Path, engine: Engine, tmp_path: Path) -> None:
    file = write_task(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    model = ["-m", "lmms_eval", "--model", "vlm", "--model_args", f"run={config},device=cpu"]
    task = ["--tasks", "colors", "--include_path", str(tmp_path)]
    output = ["--log_samples", "--output_path", str(tmp_path / "out")]
    warnings = os.environ | {"PYTHONWARNINGS": "default"}
    done = subprocess.run([*launch, *model, *task, *output], env=warnings, capture_output=True, text=True, timeout=300)
    (samples,) = (tmp_path / "out").rglob("*_samples_colors.jsonl")
    found = {row["doc_id"]: row["filtered_resps"] for row in map(json.loads, samples.read_text().splitlines())}
    assert [found[k] for k in range(5)] == [p.answer for p in by_us(engine, file).predictions], done.stdout[-2000:]
