"""Ridge regression from sums, so that the rows are seen once and never kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.common import dist

TINY = 1e-12
"""Variance, as a share of the squared mean, below which a channel is constant: nothing is read from it."""
WAITING = 1024
"""Rows that wait until their products are added."""


@dataclass(frozen=True)
class Solution:
    """``y ~ x @ weight.T + bias``, and the share of the variance of y that it leaves unexplained."""

    weight: Tensor  # ``[k, d]`` float64
    bias: Tensor  # ``[k]`` float64
    unexplained: float


class RidgeSums:
    """The sums over rows ``x [t, d]``, ``y [t, k]`` that decide their ridge regression, in float64."""

    def __init__(self, width: int, targets: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        # of x and a column of ones, with these and y: products with the ones are the sums, and the number of rows
        self.products = torch.zeros(width + 1, width + 1 + targets, dtype=torch.float64, device=device)
        self.squares = self.products.new_zeros(targets)  # of y
        self._waiting: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the rows ``x [t, d]`` and ``y [t, k]``."""
        self._waiting.append(torch.cat([x, x.new_ones(len(x), 1), y], dim=1))
        if sum(map(len, self._waiting)) >= WAITING:  # the products of many rows cost little more than those of a few
            self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat(self._waiting).double()
        self.products.addmm_(rows[:, : self.width + 1].T, rows)
        self.squares += rows[:, self.width + 1 :].square().sum(0)
        self._waiting = []

    def move_targets(self, places: Sequence[int]) -> None:
        """Move column i of y to ``places[i]``, for the first columns; the others must be zero."""
        self._settle()
        if list(places) == list(range(len(places))):
            return
        moved = torch.tensor(places, device=self.products.device, dtype=torch.long)
        for held in (self.products[:, self.width + 1 :], self.squares):
            first = held[..., : len(places)].clone()
            held.zero_()
            held[..., moved] = first

    def over_processes(self) -> None:
        """Replace the sums by those of all processes; a collective call."""
        self._settle()
        self.products, self.squares = dist.all_reduce_sum(self.products), dist.all_reduce_sum(self.squares)

    @property
    def rows(self) -> int:
        """Number of rows that were added."""
        self._settle()
        return int(self.products[self.width, self.width])

    def solve(self, penalty: float) -> Solution:
        """The solution that is least in mean squared error plus ``penalty`` times the squared weights.

        Both are those of channels of x with mean 0 and variance 1, so that no channel's scale matters. At least two
        rows must have been added.
        """
        d, count = self.width, self.rows
        means = self.products[d] / count  # of x, of the ones, of y
        x, y = means[:d], means[d + 1 :]
        inner = self.products[:d, :d] / count - x[:, None] * x
        variance = inner.diagonal().clone()
        inverse = torch.where(variance > TINY * (1 + x.square()), variance.clamp_min(TINY).rsqrt(), 0.0)
        inner.mul_(inverse[:, None]).mul_(inverse)
        shared = (self.products[:d, d + 1 :] / count - x[:, None] * y) * inverse[:, None]
        loaded = inner + max(penalty, TINY) * torch.eye(d, dtype=inner.dtype, device=inner.device)
        solved = torch.linalg.solve(loaded, shared)
        total = (self.squares / count - y.square()).sum()
        left = total - 2 * (solved * shared).sum() + (solved * (inner @ solved)).sum()
        weight = (solved * inverse[:, None]).T
        return Solution(weight, y - weight @ x, float(left / total.clamp_min(TINY)))
