"""How the losses of a step's micro-batches become one loss (``run.loss_reduction``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm.common.types import Batch

ReductionName = Literal["tokens", "groups", "batches"]
"""Values of ``run.loss_reduction``."""


@dataclass(frozen=True)
class GroupCounts:
    """``[groups]`` each: supervised tokens of a group, and its micro-batches that have any."""

    targets: Tensor
    batches: Tensor


@dataclass(frozen=True)
class LossReduction:
    """Weights of the micro-batches' loss sums; they depend on counts over all processes only.

    ``tokens``   mean over all supervised tokens of the step
    ``groups``   mean over each group's supervised tokens, summed over the groups
    ``batches``  mean of the means of each group's micro-batches, summed over the groups. As in Multimodal-GPT's code: a
                 short answer counts as much as a long one, and the result depends on how a step is split

    Without groups all micro-batches form one group.
    """

    name: ReductionName = "tokens"
    groups: tuple[str, ...] = ()

    @property
    def num_groups(self) -> int:
        """At least 1."""
        return max(1, len(self.groups))

    def _group_numbers(self, batches: Sequence[Batch]) -> list[int]:
        return [self.groups.index(b.group) if self.groups else 0 for b in batches]

    def count(self, batches: Sequence[Batch]) -> GroupCounts:
        """Counts of these micro-batches, int64 on the host; to be summed over processes."""
        targets, number = [0] * self.num_groups, [0] * self.num_groups
        for group, batch in zip(self._group_numbers(batches), batches, strict=True):
            targets[group] += batch.num_targets
            number[group] += batch.num_targets > 0
        return GroupCounts(torch.tensor(targets), torch.tensor(number))

    def weights(self, batches: Sequence[Batch], counts: GroupCounts) -> Tensor:
        """``[len(batches)]`` factors of the loss sums.

        Args:
            batches: micro-batches of this process.
            counts: :meth:`count` over all processes, on the device.
        """
        targets = counts.targets
        own = torch.tensor(self._group_numbers(batches), device=targets.device)
        if self.name == "tokens":
            return (1 / targets.sum()).expand(len(batches))
        if self.name == "groups":
            return 1 / targets.clamp(min=1)[own]
        sizes = targets.new_tensor([float(max(b.num_targets, 1)) for b in batches])
        return 1 / (counts.batches.clamp(min=1)[own] * sizes)

    def group_losses(self, batches: Sequence[Batch], losses: Tensor, counts: GroupCounts) -> Tensor:
        """``[groups]`` this process's contribution to each group's mean; the sum over processes is the mean.

        Args:
            batches: micro-batches of this process.
            losses: ``[len(batches)]`` their loss sums.
            counts: as for :meth:`weights`.
        """
        own = torch.tensor(self._group_numbers(batches), device=losses.device)
        reduction = LossReduction("groups", self.groups) if self.name == "tokens" else self
        weights = reduction.weights(batches, counts)
        return losses.new_zeros(self.num_groups).index_add(0, own, losses * weights.to(losses.dtype))
