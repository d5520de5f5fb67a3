"""What a task is: the training and the validation step."""

from __future__ import annotations

import torch
from torch import nn

from vlm.common.types import Batch, Output


class Task:
    """Base of all tasks; a task keeps no state between steps.

    ``train_step`` and ``valid_step`` return the loss as (sum, count); the runner forms the means.
    ``model`` may be wrapped for several processes, so it is only ever called.
    """

    def train_step(self, model: nn.Module, batch: Batch) -> Output:
        """Loss of one micro-batch, with gradient."""
        return model(batch)

    @torch.no_grad()
    def valid_step(self, model: nn.Module, batch: Batch) -> Output:
        """Loss of one batch, without gradient."""
        return model(batch)
