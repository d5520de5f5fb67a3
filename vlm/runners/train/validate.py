"""Validation loss over whole datasets, token-weighted, the same for any number of processes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import nn

from vlm.common import dist
from vlm.common.types import Batch
from vlm.runners.train.optim import Precision
from vlm.runners.train.step import amp_context
from vlm.tasks.base import Task


@dataclass(eq=False)
class Validator:
    """Computes the validation loss of each of several named datasets."""

    model: nn.Module  # unwrapped: processes need not see the same number of batches
    task: Task
    datasets: Mapping[str, Iterable[Batch]]
    _: KW_ONLY
    device: torch.device
    precision: Precision

    def __call__(self) -> dict[str, float]:
        """``{"loss", "tokens", "seconds", "loss_<name>"...}``; the model is in training mode again afterwards."""
        started = time.monotonic()
        self.model.eval()
        result: dict[str, float] = {}
        total = count = 0.0
        for name, batches in self.datasets.items():
            loss_sum, tokens = self._sums(batches)
            result[f"loss_{name}"] = loss_sum / max(tokens, 1.0)
            total, count = total + loss_sum, count + tokens
        self.model.train()
        return {"loss": total / max(count, 1.0), "tokens": count, "seconds": time.monotonic() - started, **result}

    def _sums(self, batches: Iterable[Batch]) -> list[float]:
        sums = torch.zeros(2, dtype=dist.sum_dtype(self.device), device=self.device)
        for batch in batches:
            with torch.no_grad(), amp_context(self.device, self.precision):
                output = self.task.valid_step(self.model, batch.to(self.device))
            sums += torch.stack([output.loss_sum.to(sums.dtype), sums.new_tensor(float(output.num_tokens))])
        return dist.all_reduce_sum(sums).tolist()
