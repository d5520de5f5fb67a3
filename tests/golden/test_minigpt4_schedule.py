"""The published schedule tables, reproduced to the last bit."""

import json
from pathlib import Path

import pytest

from vlm.runners.schedule import Plan, build_schedule

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
