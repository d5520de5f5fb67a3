"""Validation loss over whole datasets, token-weighted, the same for any number of processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import nn

from vlm.common import dist
from vlm.common.errors import NotFiniteError
from vlm.common.types import Batch
from vlm.runners.train.optim import Precision
from vlm.runners.train.step import amp_context, part_that_fails
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
        """``{"loss", "tokens", "seconds", "loss_<name>"...}``; the model is in training mode again afterwards.

        Raises NotFiniteError: the loss of a dataset is not a number; it names the dataset and the part.
        """
        started = time.monotonic()
        self.model.eval()
        result: dict[str, float] = {}
        total = count = 0.0
        for name, batches in self.datasets.items():
            loss_sum, tokens = self._sums(name, batches)
            result[f"loss_{name}"] = loss_sum / max(tokens, 1.0)
            total, count = total + loss_sum, count + tokens
        self.model.train()
        return {"loss": total / max(count, 1.0), "tokens": count, "seconds": time.monotonic() - started, **result}

    def _sums(self, name: str, batches: Iterable[Batch]) -> list[float]:
        sums = torch.zeros(2, dtype=dist.sum_dtype(self.device), device=self.device)
        bad: Batch | None = None
        for batch in batches:
            with torch.no_grad(), amp_context(self.device, self.precision):
                output = self.task.valid_step(self.model, batch.to(self.device))
            sums += torch.stack([output.loss_sum.to(sums.dtype), sums.new_tensor(float(output.num_tokens))])
            if bad is None and not bool(output.loss_sum.isfinite()):
                bad = batch
        total, count = dist.all_reduce_sum(sums).tolist()
        if not math.isfinite(total):
            reasons = dist.gather_objects([] if bad is None else [part_that_fails(self.model, bad, self.device)])
            reason = next((text for some in reasons for text in some if text), "")
            raise NotFiniteError(f"the validation loss of {name} is not a number{reason and f': {reason}'}")
        return [total, count]
