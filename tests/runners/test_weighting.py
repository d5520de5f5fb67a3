"""How the losses of micro-batches become one loss: token means, means of groups, means of micro-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from vlm.config.run import RunConfig
from vlm.runners.train.loss_weighting import LossReduction

from .test_loop import rows_of, stepper_for

GROUPS = ("vision", "language")


def joint(tools: Any) -> list[Any]:
    """A batch of each group, with different numbers of targets."""
    return [replace(tools.batch(4, 6, seed=3), group="vision"), replace(tools.batch(2, 5, seed=8), group="language")]


def cut(batches: list[Any]) -> list[Any]:
    """The same samples, one per micro-batch."""
    return [replace(row, group=batch.group) for batch in batches for row in rows_of(batch)]


def step(tools: Any, batches: list[Any], mean: Any) -> tuple[Any, torch.Tensor]:
    """Numbers of a step, and the gradient of its update."""
    model, grads = tools.model(dropout=0.0, dtype=torch.float64), []
    stepper = stepper_for(model, reduction=LossReduction(mean, GROUPS))
    stepper.optimizer.register_step_pre_hook(lambda *_: grads.append(model.proj.weight.grad.clone()))
    return stepper(batches, step=1, lr=0.1), grads[0]


def by_hand(tools: Any, batches: list[Any], weights: list[float]) -> tuple[float, torch.Tensor]:
    model = tools.model(dropout=0.0, dtype=torch.float64)
    loss = sum(model(b).loss_sum * w for b, w in zip(batches, weights, strict=True))
    loss.backward()
    return loss.item(), model.proj.weight.grad


@pytest.mark.parametrize("mean", ["tokens", "groups"])
def test_accumulation_is_exact(tools: Any, mean: str) -> None:
    whole, parts = joint(tools), cut(joint(tools))
    assert len({b.num_targets for b in parts}) > 2
    (stats, grad), (stats2, grad2) = step(tools, whole, mean), step(tools, parts, mean)
    assert stats.loss == pytest.approx(stats2.loss, abs=1e-12) and stats.parts == pytest.approx(stats2.parts)
    torch.testing.assert_close(grad, grad2, rtol=0, atol=1e-7)
    torch.testing.assert_close(stats.grad_norm, stats2.grad_norm, rtol=0, atol=1e-6)


def test_values_of_each_mean(tools: Any) -> None:
    batches = cut(joint(tools))
    counts = [b.num_targets for b in batches]
    vision, language = sum(counts[:4]), sum(counts[4:])
    expected = {
        "tokens": [1 / (vision + language)] * 6,
        "groups": [1 / vision] * 4 + [1 / language] * 2,
        "batches": [1 / (4 * n) for n in counts[:4]] + [1 / (2 * n) for n in counts[4:]],
    }
    found = {}
    for mean, weights in expected.items():
        stats, grad = step(tools, batches, mean)
        loss, want = by_hand(tools, batches, weights)
        assert stats.loss == pytest.approx(loss, rel=1e-6) and stats.targets == sum(counts)
        torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-7)
        found[mean] = stats
    assert set(found["tokens"].parts) == set(GROUPS)
    assert found["groups"].parts == pytest.approx(found["tokens"].parts)
    assert found["batches"].parts != pytest.approx(found["tokens"].parts)
    assert found["groups"].loss == pytest.approx(sum(found["groups"].parts.values()))


def test_without_groups_groups_are_tokens(tools: Any) -> None:
    batches = rows_of(tools.batch(3, 6, seed=2))
    reduction = LossReduction("groups")
    stats = stepper_for(tools.model(dropout=0.0), reduction=reduction)(batches, step=1, lr=0.1)
    plain = stepper_for(tools.model(dropout=0.0))(batches, step=1, lr=0.1)
    assert stats.loss == pytest.approx(plain.loss) and stats.grad_norm == pytest.approx(plain.grad_norm)
    assert stats.parts == {} == plain.parts


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="loss_reduction: groups needs mixing: joint, found mixing: sample"):
        RunConfig(loss_reduction="groups", mixing="sample")
    with pytest.raises(ValueError, match="joint can be combined with neither packing nor group_by_length"):
        RunConfig(mixing="joint", group_by_length=3)
    assert RunConfig(mixing="joint", loss_reduction="batches", batch_size=2).batch_size == 2


def test_console_line_has_the_means_of_the_groups(tools: Any) -> None:
    from vlm.runners.train.trackers import ProgressTracker, RunInfo

    tracker = ProgressTracker(RunInfo(tools.path, "run", 9))
    numbers = {"lr": 1.0, "grad_norm": 1.0, "samples_per_s": 1.0, "tokens_per_s": 1.0, "data_seconds": 0.1}
    record = {"step": 1, "loss": 3.0, "loss_vision": 1.0, "loss_language": 2.0, "seconds": 1.0, "memory_mib": 1.0}
    assert "loss 3.0000 (vision 1.0000, language 2.0000)  lr" in tracker.line({**numbers, **record})
    assert "loss 3.0000  lr" in tracker.line(
        {**numbers, **{k: v for k, v in record.items() if "_" not in k}, "memory_mib": 0}
    )
