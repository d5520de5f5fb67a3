"""Speed of a step, as numbers of its log line."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vlm.common.types import Batch
from vlm.runners.train.step import StepStats


class Meter:
    """Measures the steps of a run.

    Args:
        model: the unwrapped model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, batches: Sequence[Batch], stats: StepStats, seconds: float) -> dict[str, float]:
        """Numbers of the step that took ``seconds``; ``batches`` are this process's."""
        return {"tokens_per_second": stats.tokens / max(seconds, 1e-9)}
