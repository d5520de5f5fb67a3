"""One optimiser step, exact over accumulation and processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlm.common import dist
from vlm.common.errors import DataError, NonFiniteLossError
from vlm.common.types import Batch
from vlm.runners.train.loss_weighting import LossReduction
from vlm.runners.train.optim import Precision, set_lr
from vlm.runners.train.parallel import accumulate
from vlm.tasks.base import Task

FIXED = 4
"""Counts of a step before those of its weighting."""


@dataclass(frozen=True)
class StepStats:
    """Numbers of one step, over all micro-batches and processes.

    loss       mean over the supervised tokens, or as ``run.loss_reduction`` says
    grad_norm  before clipping
    targets    supervised tokens
    tokens     text positions, padding left out
    samples    samples
    skipped    float16 overflow: the scaler left the weights as they were
    stop       some process was asked to stop
    parts      mean loss of each group, with ``mixing: joint``
    """

    loss: float
    grad_norm: float
    targets: int
    tokens: int
    samples: int
    skipped: bool
    stop: bool
    parts: dict[str, float] = field(default_factory=dict)


class Stepper:
    """Forward, backward and update for a list of micro-batches.

    The mean is formed over the supervised tokens of the whole step (all micro-batches, all
    processes), so ``1 x 4`` and ``4 x 1`` samples give the same gradient; ``weighting`` has other means. The host
    waits for the device once per step, before the update.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        device: torch.device,
        precision: Precision,
        max_grad_norm: float = 0.0,
        weighting: LossReduction | None = None,
    ) -> None:
        self.weighting = weighting or LossReduction()
        self.model, self.task, self.optimizer, self.scaler = model, task, optimizer, scaler
        self.device, self.precision, self.max_grad_norm = device, precision, max_grad_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batches: Sequence[Batch], step: int, lr: float, stop: bool = False) -> StepStats:
        """Train on ``batches``, the micro-batches of one step.

        Args:
            batches: micro-batches on the host; the same number on every process.
            step: number of the step, for messages.
            lr: learning rate of this step.
            stop: this process was asked to stop; reported to all in the result.

        Raises:
            NonFiniteLossError: a loss or gradient is not a number; the weights are untouched.
            DataError: no token of the step is supervised.
        """
        set_lr(self.optimizer, lr)
        counts = self._counts(batches, stop)
        weights = self.weighting.weights(batches, counts[FIXED:])
        scales = (dist.world_size() * weights).float()
        losses, seen = [], 0
        for i, batch in enumerate(batches):
            with accumulate(self.model, last=i + 1 == len(batches)):
                loss_sum, num = self._forward(batch)
                self.scaler.scale(loss_sum * scales[i]).backward()
            losses.append(loss_sum.detach())
            seen += num
        self.scaler.unscale_(self.optimizer)
        numbers = self._read_back(batches, counts, losses, seen)
        return self._update(numbers, batches, losses, step)

    def _counts(self, batches: Sequence[Batch], stop: bool) -> torch.Tensor:
        """``[targets, tokens, samples, stop, *weighting.counts]`` over all processes, on the device (no wait)."""
        own = [
            sum(b.num_targets for b in batches),
            sum(int((b.segments > 0).sum()) for b in batches),
            sum(b.num_samples for b in batches),
            int(stop),
            *self.weighting.counts(batches),
        ]
        return dist.all_reduce_sum(torch.tensor(own, dtype=dist.sum_dtype(self.device)).to(self.device))

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, int]:
        batch = batch.to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            output = self.task.train_step(self.model, batch)
        return output.loss_sum, output.num_tokens

    def _read_back(
        self, batches: Sequence[Batch], counts: torch.Tensor, losses: list[torch.Tensor], seen: int
    ) -> list[float]:
        """Counts, loss sum, seen targets, bad losses, gradient norm, means of groups on the host: the one wait."""
        stacked = torch.stack([x.to(counts.dtype) for x in losses])
        own = torch.stack([stacked.sum(), counts.new_tensor(float(seen)), (~stacked.isfinite()).any().to(counts.dtype)])
        own = torch.cat([own, self.weighting.parts(batches, stacked, counts[FIXED:])])
        dist.all_reduce_sum(own)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads).to(counts.dtype).to(self.device)
        return torch.cat([counts[:FIXED], own[:3], norm[None], own[3:]]).tolist()

    def _update(
        self, numbers: list[float], batches: Sequence[Batch], losses: list[torch.Tensor], step: int
    ) -> StepStats:
        targets, tokens, samples, stop, loss_sum, seen, bad, norm, *parts = numbers
        if targets == 0 or seen == 0:
            raise DataError(
                f"step {step}: no supervised token in samples {_names(batches)}",
                fix="check the records' answers and model.text.max_txt_len",
            )
        if bad or (not math.isfinite(norm) and not self.precision.scaled):
            self._fail(batches, losses, step, norm)
        # differs from 1 only if the model cut a sequence that was too long
        factor = targets / seen if self.weighting.mean == "tokens" else 1.0
        norm *= factor
        skipped = not math.isfinite(norm)
        if self.max_grad_norm > 0 and norm > self.max_grad_norm and not skipped:
            factor *= self.max_grad_norm / (norm + 1e-6)
        if factor != 1.0 and not skipped:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        loss, named = self.weighting.total(loss_sum, seen, parts), self.weighting.named(parts)
        return StepStats(loss, norm, int(seen), int(tokens), int(samples), skipped, bool(stop), named)

    def _fail(self, batches: Sequence[Batch], losses: list[torch.Tensor], step: int, norm: float) -> None:
        own = [b for b, loss in zip(batches, losses, strict=True) if not bool(loss.isfinite())]
        everyone = dist.gather_objects([name for b in own for name in b.sample_ids])
        names = [name for part in everyone for name in part]
        self.optimizer.zero_grad(set_to_none=True)
        if names:
            what, where = "the loss is not a number", ", ".join(names)
        else:
            what, where = f"the gradient is not a number (norm {norm})", _names(batches)
        raise NonFiniteLossError(
            f"step {step}: {what}; samples: {where}",
            fix="look at these samples; lower run.init_lr, set run.max_grad_norm=1.0, or run.amp_dtype=bf16",
        )


def autocast(device: torch.device, precision: Precision) -> Any:
    """The autocast context of a precision; without amp one that does nothing."""
    return torch.autocast(device.type, dtype=precision.amp_dtype, enabled=precision.amp_dtype is not None)


def _names(batches: Sequence[Batch]) -> str:
    return ", ".join(name for b in batches for name in b.sample_ids) or "(unnamed)"
