"""How the losses of a step's micro-batches become one loss (``run.loss_reduction``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vlm.common.types import Batch

LossMean = Literal["tokens", "groups", "batches"]


class LossReduction:
    """Weights of the micro-batches' loss sums; they depend on counts over all processes only.

    ``tokens``   the mean over all supervised tokens of the step
    ``groups``   the mean over each group's supervised tokens, added up over the groups
    ``batches``  the mean of the means of each group's micro-batches, added up: published by Multimodal-GPT, where a
                 short answer counts as much as a long one and the result depends on how a step is cut

    Without groups all batches are one group.
    """

    def __init__(self, mean: LossMean = "tokens", groups: Sequence[str] = ()) -> None:
        self.mean, self.groups = mean, tuple(groups)

    @property
    def size(self) -> int:
        """Number of groups."""
        return max(1, len(self.groups))

    def group(self, batch: Batch) -> int:
        """The number of a batch's group."""
        return self.groups.index(batch.group) if self.groups else 0

    def counts(self, batches: Sequence[Batch]) -> list[int]:
        """Of these batches, supervised tokens by group, then batches with any by group; to be summed over processes."""
        tokens, number = [0] * self.size, [0] * self.size
        for batch in batches:
            tokens[self.group(batch)] += batch.num_targets
            number[self.group(batch)] += batch.num_targets > 0
        return [*tokens, *number]

    def weights(self, batches: Sequence[Batch], counts: Tensor) -> Tensor:
        """``[len(batches)]`` factors of the batches' loss sums.

        Args:
            batches: of this process.
            counts: ``[2 * groups]``, :meth:`counts` over all processes, on the device.
        """
        own = torch.tensor([self.group(b) for b in batches], device=counts.device)
        tokens, number = counts[: self.size], counts[self.size :]
        if self.mean == "tokens":
            return (1 / tokens.sum()).expand(len(batches))
        if self.mean == "groups":
            return 1 / tokens.clamp(min=1)[own]
        sizes = counts.new_tensor([float(max(b.num_targets, 1)) for b in batches])
        return 1 / (number.clamp(min=1)[own] * sizes)

    def parts(self, batches: Sequence[Batch], losses: Tensor, counts: Tensor) -> Tensor:
        """``[groups]``: this process's part of each group's mean; the sum over processes is the mean.

        Args:
            batches: of this process.
            losses: ``[len(batches)]`` their loss sums.
            counts: as for :meth:`weights`.
        """
        own = torch.tensor([self.group(b) for b in batches], device=counts.device)
        by_tokens = self.mean == "tokens"
        weights = 1 / counts[: self.size].clamp(min=1)[own] if by_tokens else self.weights(batches, counts)
        return losses.new_zeros(self.size).index_add(0, own, losses * weights.to(losses.dtype))

    def total(self, loss_sum: float, seen: float, parts: Sequence[float]) -> float:
        """The loss of the step, of sums over all processes."""
        return loss_sum / seen if self.mean == "tokens" else sum(parts)

    def named(self, parts: Sequence[float]) -> dict[str, float]:
        """Means by the groups' names; empty without groups."""
        return dict(zip(self.groups, parts, strict=False))
