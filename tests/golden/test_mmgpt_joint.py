"""Golden: the recorded joint training loop of Multimodal-GPT through the pieces of our runner.

The published loop clips the partial gradient after every micro-step, which ours does not; what does not depend on
that is compared with the record, the rest with the published loop clipped once per step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm.common.types import Batch
from vlm.models.vlm import VLM
from vlm.runners.train.loss_weighting import LossReduction
from vlm.runners.train.optim import Precision, build_optimizer, build_scaler
from vlm.runners.train.schedule import Plan, build_schedule
from vlm.runners.train.step import Stepper, StepStats
from vlm.tasks.image_text_pretrain import ImageTextPretrain

from .helpers_mmgpt import MmgptCase
from .test_mmgpt_model import case, pytest_generate_tests

__all__ = ["case", "pytest_generate_tests"]
CPU = torch.device("cpu")


def micro_step(case: MmgptCase, number: int) -> list[Batch]:
    """The recorded vision and language batch of a micro-step."""
    found = []
    for kind, group in (("v", "vision"), ("l", "language")):
        ids, labels = (case.tensor(f"loop.{kind}{number}.{key}") for key in ("input_ids", "labels"))
        pictures = case.tensor(f"loop.v{number}.image")[:, None, None] if kind == "v" else None
        found.append(replace(case.batch(ids, None, labels, pictures), group=group))
    return found


def optimizer_of(case: MmgptCase, model: VLM, told: dict[str, Any]) -> torch.optim.AdamW:
    options = {"weight_decay": told["weight_decay"], "beta2": told["betas"][1], "device": CPU}
    return build_optimizer(model, lr=told["learning_rate"], decay_on=["inserts"], **options)


def stepper_of(case: MmgptCase, model: VLM, told: dict[str, Any], clip: float) -> Stepper:
    optimizer, scaler = optimizer_of(case, model, told), build_scaler(Precision(), CPU)
    options = {"device": CPU, "precision": Precision(), "max_grad_norm": clip}
    reduction = LossReduction("batches", ("vision", "language"))
    return Stepper(model, ImageTextPretrain(), optimizer, scaler, reduction=reduction, **options)


def recorded(told: dict[str, Any], number: int) -> dict[str, float]:
    return dict(zip(("vision", "language"), told["loss_per_microstep_vision_then_language"][number], strict=True))


def test_losses_and_gradient_before_the_first_clipping(case: MmgptCase) -> None:
    told = case.records["loop"]
    model = case.load().train()
    stats = stepper_of(case, model, told, 0.0)(micro_step(case, 0), step=1, lr=0.0)
    assert stats.parts == pytest.approx(recorded(told, 0), abs=1e-5, rel=1e-5)
    share = told["gradient_accumulation_steps"]
    assert stats.grad_norm == pytest.approx(share * told["grad_norm_before_clip_per_microstep"][0], rel=1e-4)


def published_step(
    model: VLM, optimizer: torch.optim.AdamW, micro_steps: list[list[Batch]], clip: float
) -> tuple[float, dict[str, float]]:
    """One step of the published loop, but clipped once: norm before that, and mean losses."""
    losses = {"vision": 0.0, "language": 0.0}
    for batches in micro_steps:
        for batch in batches:
            output = model(batch)
            loss = output.loss_sum / output.num_tokens / len(micro_steps)
            loss.backward()
            losses[batch.group] += loss.item()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip).item()
    optimizer.step()
    optimizer.zero_grad()
    return norm, losses


def test_recorded_loop_clipped_once_per_step(case: MmgptCase) -> None:
    told = case.records["loop"]
    share, clip = told["gradient_accumulation_steps"], told["max_grad_norm"]
    steps = len(told["loss_per_microstep_vision_then_language"]) // share
    plan = Plan(told["learning_rate"], warmup_steps=told["warmup_steps"], total_steps=steps)
    schedule = build_schedule(told["scheduler"], plan)
    ours, theirs = case.load().train(), case.load().train()
    stepper, optimizer = stepper_of(case, ours, told, clip), optimizer_of(case, theirs, told)
    rates: list[float] = []
    for step in range(steps):
        micro = [micro_step(case, step * share + k) for k in range(share)]
        rates.append(schedule(step))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        stats: StepStats = stepper([b for batches in micro for b in batches], step=step + 1, lr=rates[-1])
        norm, losses = published_step(theirs, optimizer, micro, clip)
        assert stats.grad_norm == pytest.approx(norm, rel=1e-4) and norm > clip
        assert stats.parts == pytest.approx(losses, rel=1e-5)
        if step == 0:  # no update has been made yet
            told_means = [recorded(told, k) for k in range(share)]
            assert stats.parts == pytest.approx({g: sum(m[g] for m in told_means) / share for g in losses}, rel=1e-5)
    assert rates == pytest.approx([pair[0] for pair in told["lr_used_at_each_optimizer_step"]])
    want: dict[str, Tensor] = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            apart = (parameter - want[name]).abs() > 2e-4
            assert apart.sum() <= max(1, apart.numel() // 1000), name
