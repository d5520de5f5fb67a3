"""Metrics for records of one's own."""

from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import ConfigError, DataError
from vlm.config.api import load_config
from vlm.inference.generation import Generation
from vlm.runners.evaluate.run import benchmark_of, read_options
from vlm.tasks.benchmarks.own import METRICS, Told, box_of, references_of
from vlm.tasks.benchmarks.question_answering import QuestionAnswering
from vlm.tasks.judging.base import JudgeOptions
from vlm.tasks.scoring.statistics import difference

from .test_judging import answered
from .test_question_answering import ROWS, Engine


def values(metric: str, answer: str, *references: str) -> Any:
    return METRICS[metric]([Told("1", answer, references)])[0]


@pytest.mark.parametrize(
    ("metric", "answer", "references", "expected"),
    [
        ("exact", " red\n", ["blue", "red"], 1),
        ("exact", "Red", ["red"], 0),
        ("contains", "It is red.", ["blue", "red"], 1),
        ("contains", "It is bored.", ["red"], 0),
        ("vqa", "two", ["2"] * 9 + ["3"], 1),
        ("vqa", "two", ["2", "two", "3"], pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)),
        ("vqa", "red", ["red"], 1),
        ("anls", "helo", ["yes", "hello"], 0.8),
        ("anls", "hi", ["hello"], 0),
        ("relaxed", "104", ["7", "100"], 1),
        ("relaxed", "106", ["100"], 0),
    ],
)
def test_a_metric(metric: str, answer: str, references: list[str], expected: float) -> None:
    assert values(metric, answer, *references) == expected


def test_where_references_are() -> None:
    people = [{"answer": "a", "answer_id": 1}, {"answer": "b"}]
    assert references_of({"answers": people, "answer": "c"}, "c") == ("a", "b")
    assert references_of({"answer": ["a", 2]}, "a") == ("a", "2")
    assert references_of({"answer": [0.1, 0.2, 3, 4]}, "0.1") == ("[0.1, 0.2, 3, 4]",)
    assert references_of({"answer": "c"}, "shown") == ("shown",) and references_of({}, "") == ()


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("{<12><30><55><88>}", (12, 30, 55, 88)),
        ("It is at [0.1, .2, 0.3, 0.4].", (0.1, 2, 0.3, 0.4)),
        ("(120,300),(550,880)", (120, 300, 550, 880)),
        ("[-1.5 2 3 4 5]", (-1.5, 2, 3, 4)),
        ("1 2 3", None),
    ],
)
def test_the_box_of_a_text(text: str, box: tuple | None) -> None:
    assert box_of(text) == box


def test_cider_counts_what_few_references_have() -> None:
    told = [
        Told("1", "A small dog on the grass.", ("a small dog on the grass", "a dog")),
        Told("2", "a cat on the table", ("a red cat on the table", "a cat")),
        Told("3", "a car", ("two boats in the water", "boats")),
    ]
    first, second, third = METRICS["cider"](told)
    assert first > second > third == 0  # type: ignore[operator]
    assert METRICS["cider"]([]) == []


def test_boxes_are_compared_in_the_same_units() -> None:
    assert values("iou", "{<0><0><10><10>}", "[99, 99, 100, 100]", "[0, 0, 10, 20]") == 0.5
    assert values("iou", "[0.0, 0.0, 0.5, 0.5]", "[0, 0, 1, 1]") == 0.25
    assert values("iou", "nothing", "[1, 2, 3, 4]") is None
    with pytest.raises(DataError, match="1: reference 'left' is not a box"):
        values("iou", "[1, 2, 3, 4]", "left")


def test_a_run_with_a_metric_has_groups_intervals_and_values_to_compare() -> None:
    rows = [dict(row, answers=["red", row["answer"]]) for row in ROWS]
    found = answered(rows[:2] + [dict(rows[2], image=" ")] + [dict(rows[3], answers=["yellow"])], metric="contains")
    scores = found.scores
    assert (scores["metric"], scores["count"], scores["errors"], scores["unread"]) == ("contains", 3, 1, 0)
    assert scores["metrics"]["contains"] == 2 / 3 and found.predictions[2].error == "the answer is empty"
    assert scores["by_group"]["contains"] == {"color": {"value": 2 / 3, "count": 3}}
    low, high = scores["intervals"]["contains"]
    assert low <= 2 / 3 <= high and [s.label for s in found.table] == ["contains", "color", "errors"]
    other = answered(rows[:2] + [dict(rows[2], image=" ")] + [dict(rows[3], answers=["green"])], metric="contains")
    assert difference(found.metrics[0], other.metrics[0]).changed == {"a": 0, "b": 0, "d": 1}


def test_records_without_references_are_not_scored() -> None:
    found = answered([{"id": "a", "image": "red", "answer": ""}], metric="exact")
    assert found.scores["count"] == 0 and "no question has a reference answer" in found.note


def test_seeds_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "default_generation", lambda self: Generation())
    found = answered(ROWS, metric="exact", seeds=[0, 1])
    assert found.scores["seeds"] == [0, 1] and found.scores["runs"]["exact"] == [1.0, 1.0]


YAML = """
model: {{arch: tiny, model_type: minigpt4}}
evaluation_datasets:
  own: {{format: table, build_info: {{ann_path: {folder}/own.json}}}}
run:
  task: question_answering
  benchmark: {benchmark}
"""


def written(folder: Path, benchmark: str) -> Path:
    (folder / "own.json").write_text('[{"question": "What?", "answer": "red"}]')
    file = folder / "own.yaml"
    file.write_text(YAML.format(folder=folder, benchmark=benchmark))
    return file


def test_metric_and_judge_are_read_from_yaml(tmp_path: Path) -> None:
    cfg = load_config(written(tmp_path, "{judge: {kind: http, url: 'http://localhost:1/v1', model: m, seed: 4}}"))
    options = read_options(benchmark_of(cfg), {}, cfg.run.benchmark)
    assert options.judge == JudgeOptions("http", url="http://localhost:1/v1", model="m", seed=4)
    cfg = load_config(written(tmp_path, "{metric: vqa, judge: open}"))
    assert read_options(benchmark_of(cfg), {}, cfg.run.benchmark) == QuestionAnswering.Config(
        metric="vqa", judge="open"
    )
    named = {"judge": "exact", "metric": "judge"}  # as --judge gives them
    assert read_options(benchmark_of(cfg), {}, cfg.run.benchmark, named) == QuestionAnswering.Config(judge="exact")


def test_a_training_task_is_scored_by_a_metric(tmp_path: Path) -> None:
    file = written(tmp_path, "{metric: vqa}")
    cfg = load_config(file, ["run.task=image_text_pretrain"])
    assert read_options(benchmark_of(cfg), {}, cfg.run.benchmark).metric == "vqa"
    with pytest.raises(ConfigError, match="run.benchmark.metric.*'bleu'"):
        load_config(file, ["run.task=image_text_pretrain", "run.benchmark.metric=bleu"])


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ("{metric: bleu}", "run.benchmark.metric.*'bleu'"),
        ("{judge: {kind: robot}}", "'robot'"),
        ("{judge: {kind: model}}", "needs run"),
        ("{judge: {kind: http, url: 'http://x', model: m, key: k}}", "key"),
        ("{judge: clever}", "unknown judge 'clever'"),
    ],
)
def test_a_wrong_metric_or_judge_is_named(tmp_path: Path, benchmark: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, benchmark))
