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
        size = width + targets + 1  # one column of ones: its products are the sums and the number of rows
        self.width = width
        self.products = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._waiting: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the rows ``x [t, d]`` and ``y [t, k]``."""
        self._waiting.append(torch.cat([x, y, x.new_ones(len(x), 1)], dim=1))
        if sum(map(len, self._waiting)) >= WAITING:  # the products of many rows cost little more than those of a few
            self._settle()

    def _settle(self) -> None:
        rows = torch.cat([self.products.new_zeros(0, len(self.products)), *self._waiting]).double()
        self.products.addmm_(rows.T, rows)
        self._waiting = []

    def move_targets(self, places: Sequence[int]) -> None:
        """Move column i of y to ``places[i]``, for the first columns; the others must be zero."""
        self._settle()
        device, width, last = self.products.device, self.width, len(self.products) - 1
        kept = torch.tensor([*range(width + len(places)), last], device=device)
        moved = torch.tensor([*range(width), *(width + place for place in places), last], device=device)
        products = torch.zeros_like(self.products)
        products[moved[:, None], moved] = self.products[kept[:, None], kept]
        self.products = products

    def over_processes(self) -> None:
        """Replace the sums by those of all processes; a collective call."""
        self._settle()
        self.products = dist.all_reduce_sum(self.products)

    @property
    def rows(self) -> int:
        """Number of rows that were added."""
        self._settle()
        return int(self.products[-1, -1])

    def solve(self, penalty: float) -> Solution:
        """The solution that is least in mean squared error plus ``penalty`` times the squared weights.

        Both are those of channels of x with mean 0 and variance 1, so that no channel's scale matters. At least two
        rows must have been added.
        """
        d, count = self.width, self.rows
        means = self.products[-1, :-1] / count
        covariance = self.products[:-1, :-1] / count - means[:, None] * means
        variance = covariance.diagonal()
        varies = variance[:d] > TINY * (1 + means[:d].square())
        inverse = torch.where(varies, variance[:d].clamp_min(TINY).rsqrt(), 0.0)
        inner = covariance[:d, :d] * inverse[:, None] * inverse
        shared = covariance[:d, d:] * inverse[:, None]
        loaded = inner + max(penalty, TINY) * torch.eye(d, dtype=inner.dtype, device=inner.device)
        solved = torch.linalg.solve(loaded, shared)
        total = variance[d:].sum()
        left = total - 2 * (solved * shared).sum() + (solved * (inner @ solved)).sum()
        weight = (solved * inverse[:, None]).T
        return Solution(weight, means[d:] - weight @ means[:d], float(left / total.clamp_min(TINY)))
