"""The published schedule tables, reproduced to the last bit."""

import json
from pathlib import Path

import pytest
import yaml

from vlm.runners.train.schedule import Plan, build_schedule

TABLE = Path(__file__).parent / "minigpt4" / "open" / "framework" / "lr_schedule.json"


@pytest.mark.parametrize("name", ["linear_warmup_cosine_lr", "linear_warmup_step_lr"])
def test_published_table_is_reproduced_exactly_with_restarts(name):
    case = json.loads(TABLE.read_text())[name]
    rows = case["epoch_step_lr"]
    epoch_steps = 1 + max(step for _, step, _ in rows)
    plan = Plan(
        init_lr=case["init_lr"],
        min_lr=case["min_lr"],
        warmup_lr=case["warmup_lr"],
        warmup_steps=case["warmup_steps"],
        total_steps=len(rows),
        epoch_steps=epoch_steps,
        decay_rate=case.get("lr_decay_rate", 0.9),
        warmup_restarts=True,
    )
    schedule = build_schedule(name, plan)
    found = [[e, i, schedule(e * epoch_steps + i)] for e, i, _ in rows]
    assert found == rows


def test_learning_rates_of_the_published_run():
    """The run recorded with the published train.yaml: 2 epochs of 3 steps, 2 of them warm-up."""
    trace = json.loads((TABLE.parents[1] / "case.json").read_text())["records"]["training"]["trace"]
    run = yaml.safe_load((TABLE.parents[1] / "train.yaml").read_text())["run"]
    plan = Plan(
        init_lr=run["init_lr"],
        min_lr=run["min_lr"],
        warmup_lr=run["warmup_lr"],
        warmup_steps=run["warmup_steps"],
        total_steps=run["max_epoch"] * run["iters_per_epoch"],
        epoch_steps=run["iters_per_epoch"],
        warmup_restarts=True,
    )
    schedule = build_schedule(run["lr_sched"], plan)
    assert [schedule(i) for i in range(plan.total_steps)] == [step["lr"] for step in trace]
