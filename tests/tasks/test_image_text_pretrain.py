"""The training task calls the model and nothing else."""

import torch
from torch import nn

from vlm.common.registry import resolve
from vlm.common.types import Output


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return Output((self.weight * batch).sum(), 2)


def test_train_step_has_a_gradient_and_valid_step_has_none():
    task = resolve("task", "image_text_pretrain")()
    model, batch = Model(), torch.tensor([1.0, 2.0])
    trained, valid = task.train_step(model, batch), task.valid_step(model, batch)
    assert trained.loss_sum.requires_grad and not valid.loss_sum.requires_grad
    assert trained.num_tokens == 2 and float(valid.loss_sum) == 3.0
