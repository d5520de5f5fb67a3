"""A few numbers of a matrix, by which other weights are recognised without reading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.common.processes.shards import rows_of

SAMPLED = 4
"""Rows and columns of a matrix whose numbers are stored; rows of its first half, as added tokens are at the end."""


def probe(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The numbers of a matrix that are compared, as float32 ``[n]``; ``shape`` says where they are."""
    rows, columns = (torch.linspace(0, last, SAMPLED).long() for last in ((shape[0] - 1) // 2, shape[1] - 1))
    return rows_of(tensor, rows).float().cpu()[:, columns].flatten()


@dataclass(frozen=True)
class Probed:
    """Stands for a matrix that was quantised: its shape, and a few numbers of it from before."""

    shape: tuple[int, int]
    values: Tensor  # float32 ``[n]``, see :func:`probe`
    requires_grad: bool = False

    def numel(self) -> int:
        """The numbers of the matrix."""
        return self.shape[0] * self.shape[1]

    def dim(self) -> int:
        """2."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]
