"""Validation loss over whole datasets, token-weighted, the same for any number of processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import nn

from vlm.common import dist
from vlm.common.errors import NotFiniteError
from vlm.common.types import Batch
from vlm.runners.train.optim import Precision
from vlm.runners.train.parallel.copies import spread_of
from vlm.runners.train.step import amp_context, reason_for
from vlm.tasks.base import Task


@dataclass(eq=False)
class Validator:
    """Computes the validation loss of each of several named datasets."""

    model: nn.Module  # unwrapped: copies need not see the same number of batches
    task: Task
    datasets: Mapping[str, Iterable[Batch]]
    _: KW_ONLY
    device: torch.device
    precision: Precision

    def __post_init__(self) -> None:
        self.spread = spread_of(self.model)

    def __call__(self) -> dict[str, float]:
        """``{"loss", "tokens", "seconds", "loss_<name>"...}``; the model is in training mode again afterwards.

        Raises NotFiniteError: the loss of a dataset is not a number; it names the dataset and the part.
        """
        started = time.monotonic()
        model = self.spread.model
        model.eval()
        result: dict[str, float] = {}
        total = count = 0.0
        for name, batches in self.datasets.items():
            loss_sum, tokens = self._sums(name, batches)
            result[f"loss_{name}"] = loss_sum / max(tokens, 1.0)
            total, count = total + loss_sum, count + tokens
        self.spread.settle()
        model.train()
        return {"loss": total / max(count, 1.0), "tokens": count, "seconds": time.monotonic() - started, **result}

    def _sums(self, name: str, batches: Iterable[Batch]) -> list[float]:
        sums = torch.zeros(2, dtype=dist.sum_dtype(self.device), device=self.device)
        bad: Batch | None = None
        for batch, counts in batches_of(batches, self.spread.alone):
            with torch.no_grad(), amp_context(self.device, self.precision):
                output = self.task.valid_step(self.spread.model, batch.to(self.device))
            if not counts:
                continue
            sums += torch.stack([output.loss_sum.to(sums.dtype), sums.new_tensor(float(output.num_tokens))])
            if bad is None and not bool(output.loss_sum.isfinite()):
                bad = batch
        total, count = dist.all_reduce_sum(sums).tolist()
        if not math.isfinite(total):
            reason = reason_for(self.spread, bad, self.device)
            raise NotFiniteError(f"the validation loss of {name} is not a number{reason and f': {reason}'}")
        return [total, count]


def batches_of(batches: Iterable[Batch], alone: bool) -> Iterator[tuple[Batch, bool]]:
    """The batches of this process, each with True.

    Unless ``alone``, as many as the process with the most has: a batch that only fills up, with False, is the last of
    this process, or another one's where it has none.
    """
    if alone:
        yield from ((batch, True) for batch in batches)
        return
    own = iter(batches)
    spare: Batch | None = None
    while True:
        batch = next(own, None)
        spare = batch or spare
        found = dist.gather_objects((batch is not None, spare is not None))
        if not any(here for here, _ in found):
            return
        if not all(kept for _, kept in found):
            spare = spare or next(each for each in dist.gather_objects(spare) if each is not None)
        assert spare is not None  # some process has a batch
        yield spare, batch is not None
