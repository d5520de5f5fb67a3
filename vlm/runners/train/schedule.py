"""Learning rates as pure functions of the global optimiser step.

``@register_scheduler("name")`` registers a function ``(step, plan) -> lr``. Nothing holds state, so a resumed run
needs no scheduler state. ``cosine``, ``linear``, ``step`` and ``constant`` are ours;
``linear_warmup_cosine_lr`` and ``linear_warmup_step_lr`` are those of published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm.common.errors import ConfigError
from vlm.common.registry import register_scheduler, resolve


@dataclass(frozen=True)
class Plan:
    """What a schedule may depend on. Steps are optimiser steps."""

    init_lr: float
    min_lr: float = 0.0
    warmup_lr: float = -1.0  # rate at step 0 of the warm-up; negative: not given
    warmup_steps: int = 0
    total_steps: int = 1  # of the whole run
    epoch_steps: int = 1  # of an epoch
    decay_rate: float = 0.9
    warmup_restarts: bool = False  # count warm-up within each epoch (as the published code does, by mistake)


Schedule = Callable[[int, Plan], float]


def _published_warmup(position: int, plan: Plan) -> float:
    start = plan.warmup_lr if plan.warmup_lr >= 0 else plan.init_lr
    return min(plan.init_lr, start + (plan.init_lr - start) * position / max(plan.warmup_steps, 1))


def _warmup(step: int, plan: Plan) -> float:
    start = max(plan.warmup_lr, 0.0)
    return start + (plan.init_lr - start) * step / max(plan.warmup_steps, 1)


def _after_warmup(step: int, plan: Plan) -> float:
    """Progress of the decay, from 0 to 1."""
    return min(1.0, (step - plan.warmup_steps) / max(plan.total_steps - plan.warmup_steps, 1))


@register_scheduler("constant")
def constant(step: int, plan: Plan) -> float:
    """Linear warm-up, then ``init_lr``."""
    return _warmup(step, plan) if step < plan.warmup_steps else plan.init_lr


@register_scheduler("linear")
def linear(step: int, plan: Plan) -> float:
    """Linear warm-up, then a straight line to ``min_lr`` at ``total_steps``."""
    if step < plan.warmup_steps:
        return _warmup(step, plan)
    return plan.init_lr + (plan.min_lr - plan.init_lr) * _after_warmup(step, plan)


@register_scheduler("cosine")
def cosine(step: int, plan: Plan) -> float:
    """Linear warm-up, then half a cosine over the remaining steps; continuous where they meet."""
    if step < plan.warmup_steps:
        return _warmup(step, plan)
    return plan.min_lr + (plan.init_lr - plan.min_lr) * 0.5 * (1.0 + math.cos(math.pi * _after_warmup(step, plan)))


@register_scheduler("step")
def step_decay(step: int, plan: Plan) -> float:
    """Linear warm-up, then ``init_lr * decay_rate ** epoch``, not below ``min_lr``."""
    if step < plan.warmup_steps:
        return _warmup(step, plan)
    return max(plan.min_lr, plan.init_lr * plan.decay_rate ** (step // plan.epoch_steps))


@register_scheduler("linear_warmup_cosine_lr")
def linear_warmup_cosine_lr(step: int, plan: Plan) -> float:
    """The published schedule: the cosine runs from step 0, so the rate drops after warm-up.

    With ``warmup_restarts`` the warm-up counts steps within the epoch, as published: if it is longer than an epoch,
    it starts again in each.
    """
    if step < plan.warmup_steps:
        return _published_warmup(step % plan.epoch_steps if plan.warmup_restarts else step, plan)
    return plan.min_lr + (plan.init_lr - plan.min_lr) * 0.5 * (1.0 + math.cos(math.pi * step / plan.total_steps))


@register_scheduler("linear_warmup_step_lr")
def linear_warmup_step_lr(step: int, plan: Plan) -> float:
    """The published stepwise schedule: warm-up, then ``init_lr * decay_rate ** epoch``.

    With ``warmup_restarts`` warm-up happens in the first epoch only, as published, even if it is longer.
    """
    epoch = step // plan.epoch_steps
    in_warmup = epoch == 0 if plan.warmup_restarts else step < plan.warmup_steps or epoch == 0
    if in_warmup:
        return _published_warmup(step, plan)
    return max(plan.min_lr, plan.init_lr * plan.decay_rate**epoch)


def build_schedule(name: str, plan: Plan) -> Callable[[int], float]:
    """The schedule ``name`` as a function of the step. Raises ConfigError: unknown name, or rates out of range."""
    function: Any = resolve("scheduler", name)
    if plan.init_lr <= 0 or plan.min_lr < 0:
        raise ConfigError(f"run.init_lr={plan.init_lr}, run.min_lr={plan.min_lr}: init_lr must be > 0 and min_lr >= 0")
    return lambda step: function(step, plan)
