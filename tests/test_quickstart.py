"""The quickstart in small: every phase runs, the files are there, the numbers are those of its own answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vlm.cli import quickstart
from vlm.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quickstart")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))  # nothing of the repository is needed
        assert main(["quickstart", "--output", str(output), "--seed", "5", "--scale", "0.04"]) == 0
    return output


@pytest.fixture(scope="module")
def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def test_all_numbers_are_there(results: dict) -> None:
    assert results["seed"] == 5
    for condition in ("aligned", "wrong_image", "no_image", "unaligned", "majority"):
        assert 0 <= results[condition]["overall"] <= 1
        assert set(results[condition]["by_type"]) == set(results["aligned"]["by_type"])
    assert 0 <= results["aligned"]["unseen_pairs"] <= 1
    assert 0 <= results["aligned"]["three_objects"] <= 1
    assert {"draw", "stage1", "stage2", "evaluate", "total"} <= set(results["seconds"])


def test_numbers_follow_from_the_single_answers(run: Path, results: dict) -> None:
    lines = (run / "eval" / "evaluation_answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    right = [row["answer"].strip() == row["reference"].strip() for row in rows if row["image"] == "right"]
    assert len(right) == results["aligned"]["questions"]
    assert sum(right) / len(right) == pytest.approx(results["aligned"]["overall"])


def test_only_the_projection_trained(run: Path) -> None:
    from safetensors.torch import load_file

    first, second = (load_file(run / f"stage{n}" / "last" / "model.safetensors") for n in (1, 2))
    assert sorted(first) == sorted(second) == ["bridge.1.proj.bias", "bridge.1.proj.weight"]
    assert not torch.equal(first["bridge.1.proj.weight"], second["bridge.1.proj.weight"])


def test_a_few_steps_already_help(results: dict) -> None:
    assert results["aligned"]["overall"] > results["unaligned"]["overall"] + 0.05


def test_report_and_images(run: Path) -> None:
    page = (run / "stage2" / "report.html").read_text()
    assert "<svg" in page
    assert "data:image/" in page
    assert any((run / "data" / "images").iterdir())


def test_the_table_shows_every_condition(results: dict) -> None:
    table = quickstart.table(results)
    assert all(title in table for title in ("aligned", "wrong image", "no image", "before", "majority"))
    assert f"{100 * results['aligned']['overall']:.1f}%" in table
