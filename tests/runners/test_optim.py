"""Optimiser groups by tensor rank and by what a module declares."""

import pytest
import torch
from torch import nn

from vlm.common.errors import UserError
from vlm.runners.train.optim import (
    build_optimizer,
    build_scaler,
    pick_precision,
    set_lr,
    split_parameters,
    trainable_names,
)

CPU = torch.device("cpu")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 4, 8))
        self.global_bnlike = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def no_weight_decay(self):
        return {"query_tokens"}


def test_groups_follow_rank_and_declared_names_not_substrings():
    model = nn.Sequential(Tokens(), nn.Linear(8, 2))
    decay, plain = split_parameters(model)
    assert [n for n, _ in decay] == ["0.global_bnlike.weight", "1.weight"]
    assert [n for n, _ in plain] == [
        "0.query_tokens", "0.global_bnlike.bias", "0.norm.weight", "0.norm.bias", "1.bias",
    ]  # fmt: skip
    assert trainable_names(model) == [n for n, _ in decay + plain]


def test_projection_only_gives_the_published_two_groups():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=0.1, beta2=0.98, device=CPU)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert [g["params"][0].shape for g in optimizer.param_groups] == [(4, 4), (4,)]
    assert all(g["betas"] == (0.9, 0.98) and g["eps"] == 1e-8 for g in optimizer.param_groups)
    set_lr(optimizer, 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {0.5}


def test_decay_on_some_names_only():
    model = nn.Sequential(Tokens(), nn.Linear(8, 2))
    decay, plain = split_parameters(model, ["1.*"])
    assert [n for n, _ in decay] == ["1.weight"]
    assert trainable_names(model, ["1.*"]) == ["1.weight", *(n for n, _ in plain)]
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=0.1, beta2=0.98, device=CPU, decay_on=["1.*"])
    assert [len(g["params"]) for g in optimizer.param_groups] == [1, 6]
    with pytest.raises(UserError, match="weight_decay_on: 'bridge' selects nothing that trains"):
        split_parameters(model, ["1.*", "bridge"])


def test_a_factor_of_the_learning_rate_by_name():
    model = nn.Sequential(Tokens(), nn.Linear(8, 2))
    scale = {"1": 10.0, "1.bias": 3.0}
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=0.1, beta2=0.98, device=CPU, lr_scale=scale)
    set_lr(optimizer, 0.5)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert found["1.weight"] == (5.0, 0.1) and found["1.bias"] == (1.5, 0.0), "the last one that fits counts"
    assert found["0.global_bnlike.weight"] == (0.5, 0.1) and found["0.query_tokens"] == (0.5, 0.0)
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert [id(dict(model.named_parameters())[n]) for n in trainable_names(model, lr_scale=scale)] == held
    with pytest.raises(UserError, match="lr_scale: 'head' selects nothing that trains"):
        build_optimizer(model, lr=1e-3, weight_decay=0.1, beta2=0.98, device=CPU, lr_scale={"head": 2.0})


def test_nothing_trainable_is_an_error():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        build_optimizer(model, lr=1e-3, weight_decay=0.0, beta2=0.999, device=CPU)


@pytest.mark.parametrize("amp, name, dtype", [
    (False, "auto", None), (True, "auto", torch.bfloat16), (True, "fp16", torch.float16), (True, "bf16", torch.bfloat16)
])  # fmt: skip
def test_precision(amp, name, dtype):
    precision = pick_precision(amp, name, CPU)
    assert precision.amp_dtype == dtype
    assert build_scaler(precision, CPU).is_enabled() == (dtype == torch.float16)


def test_unknown_amp_dtype():
    with pytest.raises(UserError, match="allowed: auto, bf16, fp16"):
        pick_precision(True, "fp8", CPU)
