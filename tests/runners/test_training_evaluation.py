"""Benchmarks while a run trains: scores in log, curves and report; training is the same with and without them."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlm.checkpoint.run_folder import RunDir, read_checkpoint
from vlm.common.errors import ConfigError, DataError
from vlm.runners.evaluate.card_facts import weights_of

from ..equivalence.tiny import Tiny

ENTRY = (
    "{say: {format: table, batch_size: 2, max_new_tokens: 4, build_info: {ann_path: DATA/say.jsonl, image_path: DATA}},"
    " pope: {eval_file_path: DATA/pope, img_path: DATA, max_new_tokens: 3, empty: wrong}}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("eval")
    for k in range(4):
        Image.new("RGB", (42, 42), (60 * k, 10, 200)).save(folder / f"{k}.png")
    rows = [{"image": f"{k}.png", "question": "what?", "answer": "blue" if k else "red"} for k in range(4)]
    (folder / "say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pope").mkdir()
    lines = [
        {"question_id": k, "image": f"{k}.png", "text": "A dog?", "label": "yes" if k % 2 else "no"} for k in range(4)
    ]
    (folder / "pope" / "coco_pope_random.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = Tiny(folder)
    text = result.config.read_text()
    result.config.write_text(text + f"evaluation_datasets: {ENTRY.replace('DATA', str(folder))}\n")
    return result


def evals(*entries: str) -> str:
    return f"run.eval=[{', '.join(entries)}]"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(RunDir(path).last())[0]


def test_scores_reach_log_report_and_provenance_and_change_no_training(tiny: Tiny) -> None:
    asked = evals("{dataset: say, every: 4, images: [right, none]}", "{dataset: pope, limit: 3}")
    tiny.train("with", asked, report="true", trackers="[jsonl,tensorboard]")
    tiny.train("without")
    records = tiny.records("with", "eval")
    assert [r["step"] for r in records] == [4, 8]
    assert {"say/all", "say/none/all", "pope/f1", "pope/accuracy", "seconds"} <= set(records[-1])
    assert all(0 <= v <= 1 for k, v in records[-1].items() if "/" in k)
    losses = [[r["loss"] for r in tiny.records(name)] for name in ("with", "without")]
    assert losses[0] == losses[1]
    one, other = tensors(tiny.folder / "with"), tensors(tiny.folder / "without")
    assert all(torch.equal(one[k], other[k]) for k in other)
    page = (tiny.folder / "with" / "report.html").read_text()
    assert "pope: f1" in page and "say: all" in page
    found = json.loads((RunDir(tiny.folder / "with").last() / "provenance.json").read_text())["metrics"]
    assert found["pope/accuracy"] == records[-1]["pope/accuracy"]


@pytest.mark.parametrize(("best", "expected"), [("pope/yes", max), ("-pope/yes", min)])
def test_the_best_checkpoint_follows_any_metric(tiny: Tiny, best: str, expected, monkeypatch) -> None:
    values = iter([0.25, 0.75, 0.5, 0.25])
    monkeypatch.setattr(
        "vlm.runners.train.evaluate.values_of", lambda result: {"yes": next(values)} if result.scores else {}
    )
    name = f"best{best[0]}"
    tiny.train(name, evals("{dataset: pope, every: 2}"), f"run.best={best}", keep_last=1)
    seen = {r["step"]: r["pope/yes"] for r in tiny.records(name, "eval")}
    run = RunDir(tiny.folder / name)
    _, state = read_checkpoint(run.path / "best")
    assert seen[state["progress"]["step"]] == expected(seen.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((evals("{dataset: cats}"),), "run.eval.0.dataset"),
        ((evals("{dataset: pope}"), "run.best=say/all"), "run.best"),
        ((evals("{dataset: pope, image: [right]}"),), "unknown key 'image'"),
    ],
)
def test_a_wrong_entry_is_one_message(tiny: Tiny, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny.load("wrong", *options)


def test_an_unknown_control_is_refused_before_training(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="image control 'left'"):
        tiny.train("control", evals("{dataset: pope, images: [left]}"))


def test_questions_that_are_not_there_are_known_before_training(tiny: Tiny) -> None:
    entry = "evaluation_datasets.pope.eval_file_path=/none"
    with pytest.raises(DataError, match="/none: no such file"):
        tiny.train("lost", evals("{dataset: pope}"), entry)
    assert not (tiny.folder / "lost" / "log.jsonl").exists()


def test_two_processes_log_the_scores_of_one(tiny: Tiny) -> None:
    asked, still = evals("{dataset: say, every: 8}", "{dataset: pope, every: 8}"), {"init_lr": 1e-30, "warmup_steps": 0}
    process = tiny.start("two", asked, "datasets.cc_sbu_align.batch_size=1", processes=2, **still)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    tiny.train("one", asked, **still)
    one, two = ({k: v for k, v in tiny.records(name, "eval")[-1].items() if "/" in k} for name in ("one", "two"))
    assert one == two and len(one) > 3


def test_a_metric_that_does_not_exist_is_a_warning(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    tiny.train("typo", evals("{dataset: pope, limit: 3}"), "run.best=pope/f2", max_steps=1)
    assert "run.best=pope/f2 is not among the scores" in caplog.text and "pope/f1" in caplog.text
    assert not (tiny.folder / "typo" / "best").exists()


def test_a_wrong_path_ends_the_run_before_it_trains(tiny: Tiny) -> None:
    moved = f"evaluation_datasets.pope.eval_file_path={tiny.folder / 'nowhere'}"
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        tiny.train("nowhere", evals("{dataset: pope, every: 2}"), moved)
    assert not (tiny.folder / "nowhere" / "log.jsonl").exists()


def test_a_card_names_the_weights_of_a_run_folder(tiny: Tiny) -> None:
    tiny.train("weights", max_steps=1)
    cfg = tiny.load("card")
    cfg.model.weights.append(dataclasses.replace(cfg.model.weights[0], format="trained", path=f"{tiny.folder}/weights"))
    last = weights_of(cfg)[-1]
    assert last["file"].endswith("step_00000001/model.safetensors") and len(last["sha256"]) == 64
    (tiny.folder / "nothing").mkdir()
    cfg.model.weights[-1] = dataclasses.replace(cfg.model.weights[-1], path=f"{tiny.folder}/nothing")
    assert weights_of(cfg)[-1]["sha256"] == ""  # so that a leaderboard does not take two such models for one
