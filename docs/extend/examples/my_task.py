"""A task: text-only batches count half."""

from dataclasses import replace

from torch import nn

from vlm import register_task
from vlm.common.types import Batch, Output
from vlm.tasks.base import Task

TEXT_ONLY = 0.5


@register_task("weighted_pretrain")
class WeightedPretrain(Task):
    """Next-token training in which batches without images have a smaller weight."""

    def train_step(self, model: nn.Module, batch: Batch) -> Output:
        """The loss as (sum, count); the runner forms the mean over the step."""
        output = model(batch)
        weight = TEXT_ONLY if batch.pixels is None else 1.0
        return replace(output, loss_sum=weight * output.loss_sum)
