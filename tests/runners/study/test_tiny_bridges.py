"""The study of bridges in the painted world: it checks, and its runs compute equally much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vlm.cli.main import main
from vlm.config.api import Config
from vlm.runners.study.cells import Study
from vlm.runners.study.grid.budget import read_sizes
from vlm.runners.study.read import build_study

FOLDER = Path(__file__).parents[3] / "studies"
BRIDGES, RATES = FOLDER / "tiny_bridges.yaml", FOLDER / "tiny_bridges_rates.yaml"


@pytest.fixture(scope="module")
def bridges() -> Study:
    return build_study(BRIDGES, check="none")


def test_cells_differ_in_the_bridge_alone(bridges: Study) -> None:
    """Six designs x three seeds; data, foundations and the questions are the same."""
    assert len({cell.key for cell in bridges.cells}) == 6
    assert len({cell.hash for cell in bridges.cells}) == len(bridges.cells) == 18
    configs = [cell.runs[-1].config for cell in bridges.cells]
    own = {"bridge", "inserts", "fusion", "train", "text"}
    for part in set(configs[0].resolved["model"]) - own - {"params"}:
        assert all(c.resolved["model"][part] == configs[0].resolved["model"][part] for c in configs), part
    assert all(c.resolved["datasets"] == configs[0].resolved["datasets"] for c in configs)
    changed = {key for c in configs for key, value in vars(c.run).items() if value != vars(configs[0].run)[key]}
    assert changed == {"seed", "output_dir", "init_lr"}


def test_the_rates_are_those_of_the_search(bridges: Study) -> None:
    """Every design was tried at its rate and on both sides of it, as the same composition."""
    rates = build_study(RATES, check="none")
    assert {cell.seed for cell in rates.cells}.isdisjoint({cell.seed for cell in bridges.cells})
    for cell in bridges.cells:
        config = cell.runs[-1].config
        tried = [c.runs[-1].config for c in rates.cells if c.levels["bridge"] == cell.levels["bridge"]]
        assert all(trained(other) == trained(config) for other in tried)
        around = sorted(other.run.init_lr for other in tried)
        assert around[0] < config.run.init_lr < around[-1] and config.run.init_lr in around


def trained(config: Config) -> dict:
    return {
        key: config.resolved["model"].get(key) for key in ("bridge", "inserts", "fusion", "train", "text", "weights")
    }


@pytest.mark.heavy
def test_flops_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps follow from the budget, and a run's log counts what was predicted."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    assert main(["quickstart", "--data-only", "--scale", "0.2"]) == 0
    study = build_study(BRIDGES, ["seeds=[1]", "evaluate=null"], check="all", plan=True)
    found = read_sizes(study.folder / "step_sizes.json")
    assert len(found) == 6
    budget = study.file.budget.flops
    for steps, size in zip([cell.runs[-1].steps for cell in study.cells], found.values(), strict=True):
        assert steps * size.flops == pytest.approx(budget, rel=0.02)
    for name in ("linear", "gated cross-attention"):
        cell = next(cell for cell in study.cells if cell.levels["bridge"] == name)
        options = ["run.max_steps=24", "run.output_dir=run", "run.overwrite=true"]
        Path("run.yaml").write_text(json.dumps(cell.runs[-1].config.resolved), encoding="utf-8")
        assert main(["train", "--cfg-path", "run.yaml", "--options", *options]) == 0
        rows = map(json.loads, Path("run", "log.jsonl").read_text(encoding="utf-8").splitlines())
        flops = [row["flops"] for row in rows if row["kind"] == "train"]
        assert sum(flops) / len(flops) == pytest.approx(budget / cell.runs[-1].steps, rel=0.02)
