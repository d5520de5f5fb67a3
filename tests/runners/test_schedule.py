"""Schedules against tables computed by hand."""

import math

import pytest

from vlm.common.errors import ConfigError
from vlm.runners.train.schedule import Plan, build_schedule

PLAN = Plan(init_lr=1.0, min_lr=0.2, warmup_lr=0.1, warmup_steps=3, total_steps=7, epoch_steps=2, decay_rate=0.5)
HALF = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.25))


@pytest.mark.parametrize(
    "name, table",
    [
        ("constant", [0.1, 0.4, 0.7, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.1, 0.4, 0.7, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.1, 0.4, 0.7, 1.0, HALF, 0.6, 1.2 - HALF, 0.2]),
        ("step", [0.1, 0.4, 0.7, 0.5, 0.25, 0.25, 0.2, 0.2]),
        ("linear_warmup_step_lr", [0.1, 0.4, 0.7, 0.5, 0.25, 0.25, 0.2, 0.2]),
    ],
)
def test_table(name, table):
    schedule = build_schedule(name, PLAN)
    assert [schedule(i) for i in range(len(table))] == pytest.approx(table, abs=1e-12)


def test_warmup_counts_global_steps_by_default():
    """Warm-up over 4 steps with epochs of 2: the published code starts again at step 2, ours does not."""
    numbers = {"init_lr": 1.0, "warmup_lr": 0.2, "warmup_steps": 4, "total_steps": 8, "epoch_steps": 2}
    fixed = build_schedule("linear_warmup_cosine_lr", Plan(**numbers))
    published = build_schedule("linear_warmup_cosine_lr", Plan(**numbers, warmup_restarts=True))
    tail = [0.5, 0.5 * (1 + math.cos(math.pi * 5 / 8))]
    assert [fixed(i) for i in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, *tail])
    assert [published(i) for i in range(6)] == pytest.approx([0.2, 0.4, 0.2, 0.4, *tail])


def test_published_schedule_without_warmup_lr_starts_at_init_lr():
    schedule = build_schedule("linear_warmup_cosine_lr", Plan(init_lr=0.5, warmup_steps=3, total_steps=10))
    assert [schedule(i) for i in range(3)] == [0.5, 0.5, 0.5]


def test_own_schedules_without_warmup_lr_start_at_zero():
    schedule = build_schedule("cosine", Plan(init_lr=0.5, warmup_steps=2, total_steps=10))
    assert [schedule(0), schedule(1), schedule(2)] == [0.0, 0.25, 0.5]


def test_unknown_schedule_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        build_schedule("cosin", PLAN)


def test_a_rate_that_is_no_rate_is_refused():
    with pytest.raises(ConfigError, match="init_lr"):
        build_schedule("cosine", Plan(init_lr=0.0))
