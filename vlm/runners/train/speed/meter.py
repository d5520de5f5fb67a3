"""Speed of a step, as numbers of its log line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from vlm.common.types import Batch
from vlm.runners.train.speed.flops import FlopCounts
from vlm.runners.train.speed.peaks import peak
from vlm.runners.train.step import StepStats

log = logging.getLogger(__name__)

WORTH_MEASURING = 5e9
"""FLOPs of a step below which the share of the device's peak says nothing, and none is measured."""


class Meter:
    """Measures the steps of a run.

    Args:
        model: the unwrapped model.
        device: of this process.
        dtype: of the matrix products.
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.counts = FlopCounts(model)
        self._peak: float | None = None

    @contextlib.contextmanager
    def counting(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Around the computation of a step; a few steps of a run are counted, which takes longer."""
        with self.counts.counting(batches):
            yield

    def __call__(self, batches: Sequence[Batch], stats: StepStats, seconds: float) -> dict[str, float]:
        """Numbers of the step that took ``seconds``; ``batches`` are this process's.

        ``tokens_per_second`` (text positions) and ``samples_per_second`` are of all processes; ``flops``, ``tflops`` (a
        second) and ``mfu``, the share of the device's peak, are of this one. The FLOPs are those that it computes: of
        recomputed activations twice, of weights that do not train no gradient.
        """
        seconds = max(seconds, 1e-9)
        found = {"tokens_per_second": stats.tokens / seconds, "samples_per_second": stats.samples / seconds}
        flops = self.counts.of(batches)
        if not flops:
            return found
        found |= {"flops": flops, "tflops": flops / seconds / 1e12}
        if flops >= WORTH_MEASURING:
            found["mfu"] = flops / seconds / self._peak_of_device()
        return found

    def _peak_of_device(self) -> float:
        if self._peak is None:
            self._peak = peak(self.device, self.dtype)
            name = str(self.dtype).removeprefix("torch.")
            log.info("peak of the device for matrix products in %s: %.3g TFLOP/s", name, self._peak / 1e12)
        return self._peak
