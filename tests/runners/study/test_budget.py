"""Steps from budgets, and that runs of equal budgets are equal by what their own logs count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runners.study.by_hand import BASE, DATA
from vlm.common.errors import ConfigError
from vlm.config.api import Config, load_config
from vlm.runners.study.file import Budget
from vlm.runners.study.grid.budget import FILE, Measurer, StepSize, declared_samples, steps_of
from vlm.runners.study.read import build_study
from vlm.runners.train.run import run_training

STUDY = """
base: base.yaml
axes:
  bridge:
    qformer: {}
    all tokens:
      datasets.cc_sbu_align.batch_size: 20
      model.bridge: [{name: mlp, depth: 2}]
      model.train: ["bridge.*", "llm.lora"]
      model.weights:
        - {format: eva, path: DATA/eva_vit_g.pth, into: vision}
        - {format: hf_llm, path: DATA/llm, into: llm}
  run.init_lr: [0.01, 0.02]
when: {run.init_lr: {bridge: qformer}}
set: {run.warmup_steps: 2, datasets.cc_sbu_align.batch_size: 10}  # whole passes over the five pictures
seeds: [42]  # that of the base, whose samples are drawn to measure a step
budget: {flops: 1e10}
"""


class Fixed(Measurer):
    """Knows the size of a step by the learning rate of its configuration."""

    def __init__(self, **sizes: StepSize) -> None:
        super().__init__(1)
        self.sizes = sizes

    def of(self, config: Config, budget: Budget) -> StepSize:
        """The size that was given."""
        return self.sizes[str(config.run.job_name)]


def config(*options: str) -> Config:
    """The small published composition."""
    return load_config("tiny/stage1_pretrain", options, check="none", train=True)


def test_steps_come_nearest_to_the_budget_or_it_is_told_why_they_cannot() -> None:
    size = StepSize(samples=32, tokens=1000.5, flops=3e9)
    assert steps_of(Budget(samples=3200), size, 3200) == 100
    assert steps_of(Budget(tokens=100_000), size, 100_000) == 100
    assert steps_of(Budget(flops=1e12), size, 1e12) == 333
    with pytest.raises(
        ConfigError, match=r"a step takes 32 samples, so that .* cannot meet 80 within 1 %: 2 steps take 64"
    ):
        steps_of(Budget(samples=80), size, 80)


def test_equal_to_the_reference_means_as_many_flops_as_its_own_length_takes() -> None:
    dear, cheap = StepSize(32, flops=4e9, steps=100), StepSize(32, flops=1e9, steps=100)
    measurer, budget = Fixed(dear=dear, cheap=cheap, endless=StepSize(32, flops=1e9)), Budget(flops="reference")
    dear_one, cheap_one = config("run.job_name=dear"), config("run.job_name=cheap")
    assert measurer.steps(dear_one, budget, dear_one) == 100
    assert measurer.steps(cheap_one, budget, dear_one) == 400
    assert measurer.steps(dear_one, budget, cheap_one) == 25
    with pytest.raises(ConfigError, match="run.warmup_steps is 20, but the budget gives the run 10 steps"):
        measurer.steps(dear_one, Budget(samples=320), dear_one)
    with pytest.raises(ConfigError, match="needs a reference that says how long it trains"):
        measurer.steps(cheap_one, budget, config("run.job_name=endless"))


def test_samples_of_a_step_are_known_without_data_where_the_file_says_them() -> None:
    assert declared_samples(config("run.accum_grad_iters=3"), 2) == 32 * 3 * 2
    assert declared_samples(config("run.global_batch=48"), 8) == 48
    assert declared_samples(config("run.packing={max_tokens: 512}"), 1) is None


@pytest.mark.heavy
def test_different_cells_train_on_equal_flops_by_their_own_logs(tmp_path: Path, monkeypatch: Any) -> None:
    """Two bridges whose steps cost different amounts: both runs' logs add up to the same within 2 %."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE.replace("max_steps: 8", "max_epoch: 2"))
    Path("study.yaml").write_text(STUDY.replace("DATA", str(DATA)))
    study = build_study("study.yaml", check="all", plan=True)
    kept = json.loads((study.folder / FILE).read_text())
    assert len(kept) == 2, "a learning rate changes nothing that a step takes"
    assert build_study("study.yaml", check="none").cells[0].hash == study.cells[0].hash
    worked = []
    steps = []
    for cell in (next(c for c in study.cells if c.levels["bridge"] == b) for b in ("qformer", "all tokens")):
        run = cell.runs[0]
        run_training(run.config)
        log = [json.loads(line) for line in (Path(run.config.run.output_dir) / "log.jsonl").read_text().splitlines()]
        rows = [row for row in log if row["kind"] == "train"]
        assert len(rows) == run.steps
        worked.append(sum(row["flops"] for row in rows))
        steps.append(run.steps)
        size = next(s for s in kept.values() if s["flops"] == pytest.approx(1e10 / len(rows), rel=0.02))
        assert sum(row["samples"] for row in rows) == size["samples"] * len(rows)
        seen = rows[-1]["data/cc_sbu_align/tokens"]
        assert seen == pytest.approx(size["tokens"] * len(rows), rel=0.05)
    assert steps[0] > steps[1] + 10
    assert worked[0] == pytest.approx(worked[1], rel=0.02)
    assert worked == pytest.approx([1e10, 1e10], rel=0.015)
