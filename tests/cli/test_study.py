"""``vlm study check``, ``plan`` and ``diff`` as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm.cli.main import main

STUDY = """
base: tiny/stage1_pretrain
set: {model.q_former_model: "", model.train: ["bridge.*"], model.text.tokens_per_medium: 65, datasets: {}}
axes:
  model.bridge: [linear, {name: mlp, depth: 2}, {name: perceiver, num_latents: 16}]
seeds: [0, 1]
budget: {samples: 3200}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study without data."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def test_check_lists_every_cell_and_a_bad_one_hides_no_other(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One bridge gives another number of tokens than the text states: only building the model shows that."""
    assert main(["study", "check", str(file)]) == 2
    told = capsys.readouterr()
    assert "3 combinations x 2 seeds = 6 cells, 4 runs, 1 of the combinations is wrong" in told.out
    assert "* linear" in told.out and "perceiver num_latents=16  wrong, see below" in told.out
    assert "model.text.tokens_per_medium is 65, but vision and bridge give 16 tokens" in told.err
    assert "[perceiver num_latents=16]" in told.err
    fixed = ["--options", "axes.model.bridge=[linear, {name: mlp, depth: 2}]"]
    assert main(["study", "check", str(file), *fixed]) == 0
    assert main(["study", "check", str(file), *fixed, "evaluate={}"]) == 2
    assert "evaluate asks nothing" in capsys.readouterr().err


@pytest.mark.heavy
def test_check_looks_at_what_is_asked_and_at_the_first_trial_of_a_search(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise these are found once all cells are trained."""
    Path("q.jsonl").write_text('{"image": "a.png", "question": "?", "answer": "b"}\n')
    table = "{format: table, build_info: {ann_path: q.jsonl, image_path: .}}"
    fixed = ["--options", "axes.model.bridge=[linear]", f"evaluate.datasets.seen={table}"]
    assert main(["study", "check", str(file), *fixed, "score=seen/accuracy"]) == 0
    for option, told in (
        (
            "evaluate.datasets.gone={format: table, build_info: {ann_path: gone.jsonl}}",
            "gone.build_info.ann_path: found",
        ),
        ("evaluate.datasets.bad={format: tabel}", "evaluate.datasets.bad.format: unknown dataset 'tabel'"),
        ("evaluate.task=nothing", "run.task: unknown task 'nothing'"),
        ("evaluate.images=[]", "evaluate.images: found []"),
        ("evaluate.images=[rigth]", "found 'rigth' (a string), expected one of 'right', 'wrong'"),
        ("score=sen/accuracy", "found 'sen/accuracy', which nothing asks for (allowed: loss, seen/METRIC)"),
    ):
        capsys.readouterr()
        assert main(["study", "check", str(file), *fixed, option]) == 2, option
        assert told in capsys.readouterr().err
    for option in (
        "axes.run.init_lrr=[1]",
        "base=gone.yaml",
        "exclude=[{model.bridge: linear}]",
        "search.pruner=median",
    ):
        assert main(["study", "check", str(file), *fixed, "search={trials: 2}", option]) == 2, option
    capsys.readouterr()
    same = ["axes.x={a: {}, b: {run.init_lr: 1e-3}}", "set.run.init_lr=1e-3"]
    assert main(["study", "check", str(file), *fixed, *same]) == 0
    out = capsys.readouterr().out
    assert "4 cells, 2 runs" in out and "nothing in it differs: linear, a; linear, b" in out


def test_nothing_but_run_imports_what_a_study_names(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "of_somebody.py").write_text("raise RuntimeError('imported')")
    base = "base: tiny/stage1_pretrain\n"
    every = [["check"], ["plan"], ["show"], ["report"], ["diff"]]
    texts = {base + "plugins: [of_somebody]": every, "base: theirs.yaml": [["check"], ["report"]]}
    (file.parent / "theirs.yaml").write_text("model: {arch: tiny, model_type: minigpt4}\nplugins: [of_somebody]\n")
    for text, actions in texts.items():
        file.write_text(text)
        for words in actions:
            cells = ["base", "base"] if words == ["diff"] else []
            assert main(["study", *words, str(file), *cells]) == 2, words
            assert "'of_somebody' would import that module: only with --trust" in capsys.readouterr().err


def test_diff_shows_what_differs_between_two_cells(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "diff", str(file), "linear", "mlp depth=2"]) == 0
    assert "model.bridge.0.name: linear -> mlp" in capsys.readouterr().out
    assert main(["study", "diff", str(file), "linear", "mpl depth=2"]) == 2
    assert "has no cell 'mpl depth=2'; did you mean 'mlp depth=2'?" in capsys.readouterr().err


@pytest.mark.heavy
def test_plan_adds_up_what_all_runs_need(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["--options", "axes.model.bridge=[linear, {name: mlp, depth: 2}]", "set.run.batch_size_train=32"]
    words = ["study", "plan", str(file), "--gpu", "h200", "--gpus", "2", "--tokens", "20", "--json", "plan.json"]
    assert main([*words, *fixed]) == 0
    out = capsys.readouterr().out
    assert "2 combinations x 2 seeds, 4 runs, 1 process a run, h200" in out and "2 runs at a time" in out
    found = json.loads(Path("plan.json").read_text())
    one, two = (cell["runs"][0] for cell in found["cells"])
    assert one["steps"] == two["steps"] == 100
    assert found["flops"] == pytest.approx(2 * (one["flops"] + two["flops"]))
    assert found["hours"] == pytest.approx(2 * (one["hours"] + two["hours"]))
    parts = {part["name"]: part["trained"] for part in one["plan"]["parts"]}
    assert parts["bridge"] == 128 * 128 + 128
