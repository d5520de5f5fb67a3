"""One optimiser step, exact over accumulation and processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import nn

from vlm.common import dist
from vlm.common.errors import DataError, NonFiniteLossError, UserError
from vlm.common.processes import shards
from vlm.common.types import Batch
from vlm.models.finite import locate
from vlm.models.vlm import VLM
from vlm.runners.train.loss_weighting import GroupCounts, LossReduction
from vlm.runners.train.optim import Precision, set_lr
from vlm.runners.train.parallel.copies import Spread
from vlm.runners.train.watch.spikes import Spike, SpikeGuard
from vlm.tasks.base import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepCounts:
    """Counts of a step over all processes, on the device: ``[1]`` each, and those of the groups."""

    targets: torch.Tensor  # supervised tokens
    tokens: torch.Tensor  # text positions without padding
    samples: torch.Tensor
    stop: torch.Tensor  # processes that were asked to stop
    batches: torch.Tensor  # ``[processes]`` micro-batches of each
    groups: GroupCounts

    @classmethod
    def of(cls, batches: Sequence[Batch], stop: bool, reduction: LossReduction, device: torch.device) -> StepCounts:
        """Counts of ``batches``, summed over the processes by one all-reduce; the host does not wait for it."""
        groups = reduction.count(batches)
        by_process = torch.zeros(dist.world_size(), dtype=torch.long)
        by_process[dist.rank()] = len(batches)
        own = [
            torch.tensor([sum(b.num_targets for b in batches)]),
            torch.tensor([sum(int((b.segments > 0).sum()) for b in batches)]),
            torch.tensor([sum(b.num_samples for b in batches)]),
            torch.tensor([int(stop)]),
            by_process,
            groups.targets,
            groups.batches,
        ]
        total = dist.all_reduce_sum(torch.cat(own).to(dist.sum_dtype(device)).to(device))
        targets, tokens, samples, stops, by_process, *by_group = total.split([len(x) for x in own])
        return cls(targets, tokens, samples, stops, by_process, GroupCounts(*by_group))


@dataclass(frozen=True)
class StepSums:
    """Sums of a step over all processes, on the host; the first four as in :class:`StepCounts`."""

    targets: float
    tokens: float
    samples: float
    stop: float
    loss_sum: float
    seen: float  # supervised tokens that the model used; fewer than ``targets`` if it cut a sequence
    bad_losses: float  # processes with a loss that is not finite
    grad_norm: float  # of this process's (averaged) gradient
    group_losses: list[float]  # mean loss of each group


@dataclass(frozen=True)
class StepStats:
    """Numbers of one step, over all micro-batches and processes."""

    loss: float  # mean over the supervised tokens, or as ``run.loss_reduction`` says
    grad_norm: float  # before clipping
    targets: int  # supervised tokens
    tokens: int  # text positions without padding
    samples: int
    skipped: bool  # the weights are unchanged: a float16 overflow, or a spike with ``run.on_spike: skip``
    stop: bool  # some process was asked to stop
    parts: dict[str, float] = field(default_factory=dict)  # mean loss of each group by name, with ``mixing: joint``
    spike: Spike | None = None  # why the step is a spike
    spike_samples: list[str] = field(default_factory=list)  # of all processes, only of a spike


@dataclass(eq=False)
class Stepper:
    """Forward, backward and update for a list of micro-batches.

    The mean is taken over the supervised tokens of the whole step (all micro-batches, all processes), so ``1 x 4`` and
    ``4 x 1`` samples give the same gradient; ``reduction`` offers other means. The host waits for the device once per
    step, before the update.
    """

    model: nn.Module | Spread  # a plain module is whole, and alone
    task: Task
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    _: KW_ONLY
    device: torch.device
    precision: Precision
    max_grad_norm: float = 0.0  # 0: no clipping
    reduction: LossReduction = field(default_factory=LossReduction)
    guard: SpikeGuard | None = None  # None: no step is a spike
    uneven: bool = False  # processes may have different numbers of micro-batches

    def __post_init__(self) -> None:
        self.spread = self.model if isinstance(self.model, Spread) else Spread(self.model)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.first = True

    def __call__(self, batches: Sequence[Batch], step: int, lr: float, stop: bool = False) -> StepStats:
        """Train on ``batches``, the micro-batches of one step.

        Args:
            batches: micro-batches on the host, at least one; the same number on every process unless ``uneven``. A
                process with fewer computes its last one more than once, without effect: models in shards need the
                same number of forward calls everywhere.
            step: number of the step, for messages.
            lr: learning rate of this step.
            stop: this process was asked to stop; the result tells all processes.

        Raises:
            NonFiniteLossError: a loss or gradient is not finite; the weights are unchanged.
            DataError: no token of the step is supervised.
        """
        set_lr(self.optimizer, lr)
        counts = StepCounts.of(batches, stop, self.reduction, self.device)
        weights = self.reduction.weights(batches, counts.groups)
        scales = (dist.world_size() * weights).float()
        losses, seen = [], 0
        if self.uneven:
            for _ in range(int(counts.batches.max()) - len(batches)):
                with self.spread.accumulate(last=False):
                    self.scaler.scale(self._forward(batches[-1])[0] * 0.0).backward()
        for i, batch in enumerate(batches):
            with self.spread.accumulate(last=i + 1 == len(batches)):
                loss_sum, num = self._forward(batch)
                self.scaler.scale(loss_sum * scales[i]).backward()
            losses.append(loss_sum.detach())
            seen += num
        if self.first:
            self._warn_of_unread(step)
            self.spread.stepped()
            self.first = False
        self.scaler.unscale_(self.optimizer)
        sums = self._read_back(batches, counts, losses, seen)
        return self._update(sums, batches, losses, step)

    def _warn_of_unread(self, step: int) -> None:
        """Name parameters that train but that nothing in this step has read."""
        trained = {id(p) for p in self.parameters if p.grad is None}
        if names := [name for name, p in self.spread.model.named_parameters() if id(p) in trained]:
            log.warning(
                "step %d: %d of %d trained tensors have no gradient, first %s: no sample of this step uses them; "
                "freeze them (model.train), or in several processes set run.find_unused_parameters=true",
                *(step, len(names), len(self.parameters), names[0]),
            )

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, int]:
        if batch.seed is not None:
            dist.seed_everything(batch.seed)
        batch = batch.to(self.device, non_blocking=True)
        with amp_context(self.device, self.precision):
            output = self.task.train_step(self.spread.called, batch)
        return output.loss_sum, output.num_tokens

    def _read_back(
        self, batches: Sequence[Batch], counts: StepCounts, losses: list[torch.Tensor], seen: int
    ) -> StepSums:
        """Sum losses over the processes and bring everything to the host: the one wait."""
        return self.on_host(counts, dist.all_reduce_sum(self.own_sums(batches, counts, losses, seen)))

    def own_sums(
        self, batches: Sequence[Batch], counts: StepCounts, losses: list[torch.Tensor], seen: int
    ) -> torch.Tensor:
        """``[3 + groups]`` of this process, on the device: loss, tokens seen, whether a loss is bad, the groups'."""
        dtype = counts.targets.dtype
        stacked = torch.stack([x.to(dtype) for x in losses])
        own = torch.stack([stacked.sum(), stacked.new_tensor(float(seen)), (~stacked.isfinite()).any().to(dtype)])
        return torch.cat([own, self.reduction.group_losses(batches, stacked, counts.groups)])

    def on_host(self, counts: StepCounts, own: torch.Tensor) -> StepSums:
        """Sums over all processes and the norm of the gradient; the host waits for the device."""
        dtype = counts.targets.dtype
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = self.spread.total_norm(grads).to(dtype).to(self.device)
        scalars = [counts.targets, counts.tokens, counts.samples, counts.stop, own[:3], norm[None]]
        values = torch.cat([*scalars, own[3:]]).tolist()
        return StepSums(*values[:8], group_losses=values[8:])  # type: ignore[misc]

    def means(self, sums: StepSums) -> tuple[float, float, float]:
        """Loss of the step, norm of its gradient, and the factor by which the gradient has yet to be multiplied.

        It differs from 1 only if the model cut a sequence that was too long.
        """
        tokens = self.reduction.name == "tokens"
        factor = sums.targets / sums.seen if tokens else 1.0
        return (sums.loss_sum / sums.seen if tokens else sum(sums.group_losses)), sums.grad_norm * factor, factor

    def _update(self, sums: StepSums, batches: Sequence[Batch], losses: list[torch.Tensor], step: int) -> StepStats:
        if sums.targets == 0 or sums.seen == 0:
            raise DataError(
                f"step {step}: no supervised token in samples {_names(batches)}",
                fix="check the records' answers and model.text.max_txt_len",
            )
        if sums.bad_losses or (not math.isfinite(sums.grad_norm) and not self.precision.scaled):
            self._fail(batches, losses, step, sums.grad_norm)
        loss, norm, factor = self.means(sums)
        skipped = not math.isfinite(norm)
        spike = self.guard.judge(loss, norm) if self.guard is not None and not skipped else None
        names: list[str] = []
        if spike is not None and self.guard is not None:
            names, skipped = self._spiked(self.guard, spike, batches, step)
        if self.max_grad_norm > 0 and norm > self.max_grad_norm and not skipped:
            factor *= self.max_grad_norm / (norm + 1e-6)
        if factor != 1.0 and not skipped:
            torch._foreach_mul_([shards.own(p.grad) for p in self.parameters if p.grad is not None], factor)
        if spike is None or not skipped:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return StepStats(
            loss=loss,
            grad_norm=norm,
            targets=int(sums.seen),
            tokens=int(sums.tokens),
            samples=int(sums.samples),
            skipped=skipped,
            stop=bool(sums.stop),
            parts=dict(zip(self.reduction.groups, sums.group_losses)),
            spike=spike,
            spike_samples=names,
        )

    def _spiked(self, guard: SpikeGuard, spike: Spike, batches: Sequence[Batch], step: int) -> tuple[list[str], bool]:
        """Names of the samples of all processes, and whether the update is left out; a collective call."""
        everyone = dist.gather_objects([name for b in batches for name in b.sample_ids])
        names = [name for part in everyone for name in part]
        try:
            return names, guard.skips(spike, step, names)
        except UserError:
            self.optimizer.zero_grad(set_to_none=True)
            raise

    def _fail(self, batches: Sequence[Batch], losses: list[torch.Tensor], step: int, norm: float) -> None:
        bad = [b for b, loss in zip(batches, losses, strict=True) if not bool(loss.isfinite())]
        everyone = dist.gather_objects([name for b in bad for name in b.sample_ids])
        names = [name for part in everyone for name in part]
        reason = reason_for(self.spread, bad[0] if bad else None, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        what = "the loss is not a number" if names else f"the gradient is not a number (norm {norm})"
        raise NonFiniteLossError(
            f"step {step}: {what}; samples: {', '.join(names) or _names(batches)}{reason and f'; {reason}'}",
            fix="check these samples; lower run.init_lr, or set run.max_grad_norm=1.0 or run.amp_dtype=bf16",
        )


def amp_context(device: torch.device, precision: Precision) -> Any:
    """The autocast context of a precision; disabled without mixed precision."""
    return torch.autocast(device.type, dtype=precision.amp_dtype, enabled=precision.amp_dtype is not None)


def reason_for(spread: Spread, bad: Batch | None, device: torch.device) -> str:
    """The message that names the part of the model that is not finite first for ``bad``; empty if none is.

    A collective call: ``bad`` is that of this process, or None, and the first message of all is the result.
    """
    found = ""
    with spread.unsharded() as possible:
        if possible and bad is not None and isinstance(spread.model, VLM):
            found = str(locate(spread.model, bad.to(device)) or "")
    return next((text for text in dist.gather_objects(found) if text), "")


def _names(batches: Sequence[Batch]) -> str:
    return ", ".join(name for b in batches for name in b.sample_ids) or "(unnamed)"
