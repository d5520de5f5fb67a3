"""Activation checkpointing and wrapping."""

import pytest
import torch
from torch import nn

from vlm.common.errors import ConfigError
from vlm.runners.train.parallel.copies import wrap
from vlm.runners.train.parallel.recompute import checkpoint_activations, checkpointable_modules


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x, scale=None):
        self.calls += 1
        return x + self.drop(torch.tanh(self.fc(x))) * scale


class Model(nn.Module):
    """Frozen front blocks, a trainable neck, frozen back blocks through which the gradient flows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.bridge = nn.ModuleList([nn.Linear(4, 4), nn.Tanh()])
        self.back = nn.ModuleList([Block() for _ in range(3)])
        self.front.requires_grad_(False)
        self.back.requires_grad_(False)

    def forward(self, x):
        x = self.bridge[1](self.bridge[0](self.front(x)))
        for block in self.back:
            x = block(x, scale=torch.tensor(0.5))
        return x.square().sum()


def gradient(model):
    torch.manual_seed(3)
    model(torch.randn(2, 4)).backward()
    return model.bridge[0].weight.grad


def test_lists_of_equal_modules_are_found_and_mixed_ones_left():
    assert [n for n, _ in checkpointable_modules(Model())] == ["front.0", "front.1", "back.0", "back.1", "back.2"]


def test_a_model_may_name_its_layers():
    model = Model()
    model.checkpointable_modules = lambda: [model.back[2]]
    assert [n for n, _ in checkpointable_modules(model)] == ["back.2"]


@pytest.mark.parametrize("choice", ["torch", "fairscale", "fairscale_offload"])
def test_recomputing_changes_neither_gradient_nor_keys(choice):
    plain, treated = Model(), Model()
    keys = list(treated.state_dict())
    assert checkpoint_activations(treated, choice) == 5
    assert torch.equal(gradient(treated), gradient(plain))
    assert list(treated.state_dict()) == keys
    assert [b.calls for b in treated.back] == [2, 2, 2] and [b.calls for b in plain.back] == [1, 1, 1]
    with torch.no_grad():
        treated(torch.randn(2, 4))
    assert [b.calls for b in treated.back] == [3, 3, 3]


def test_none_does_nothing_and_unknown_is_refused():
    model = Model()
    assert checkpoint_activations(model, "none") == 0
    with pytest.raises(ConfigError, match="allowed: none, torch, fairscale, fairscale_offload"):
        checkpoint_activations(model, "deepspeed")


def test_missing_fairscale_is_explained(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "fairscale.nn.checkpoint", None)
    with pytest.raises(ConfigError, match="pip install fairscale"):
        checkpoint_activations(Model(), "fairscale")


def test_alone_a_model_is_not_wrapped():
    model = Model()
    assert wrap(model) is model
