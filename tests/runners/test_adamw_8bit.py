"""AdamW with states in 8 bits: what a byte holds, how a run learns with it, and that it resumes exactly."""

import copy
import io
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from vlm.checkpoint.run_folder import check_plain
from vlm.common.errors import ConfigError, WeightsError
from vlm.common.registry import register_optimizer
from vlm.runners.train import adamw_8bit
from vlm.runners.train.adamw_8bit import levels, pack, unpack
from vlm.runners.train.optim import build_optimizer

CPU = torch.device("cpu")


@pytest.mark.parametrize(("signed", "error"), [(True, 0.015), (False, 0.01)])
def test_a_byte_holds_a_value_within_a_percent(signed, error):
    torch.manual_seed(0)
    known = levels(signed)
    assert len(known.unique()) == 256 and {0.0, 1.0} <= set(known.tolist())
    values = torch.randn(5, 700) ** 3
    values = values if signed else values.abs()
    codes, scale = pack(values, signed)
    assert codes.dtype is torch.uint8 and codes.shape == (5, 700) and scale.shape == (5, 3)
    found = unpack(codes, scale, signed)
    assert 0 < (found - values).norm() < error * values.norm()
    assert signed or torch.equal(unpack(*pack(found, signed), signed), found)  # -1 is not among the signed levels
    assert torch.equal(pack(values[2:4], signed)[0], codes[2:4])  # a row does not depend on the others
    assert not pack(torch.zeros(2, 300), signed)[1].any() and pack(torch.zeros(0, 300), signed)[0].shape == (0, 300)


def train(optimizer, model, steps, seed=0):
    draw, losses = torch.Generator().manual_seed(seed), []
    target = torch.randn(64, 32, generator=torch.Generator().manual_seed(5))
    for _ in range(steps):
        x = torch.randn(32, 64, generator=draw)
        loss = (model(x) - torch.sin(x @ target / 4)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def small_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32))


def made(model, name):
    return build_optimizer(model, lr=3e-3, weight_decay=0.01, beta2=0.99, device=CPU, name=name)


def test_it_learns_like_adamw_with_a_quarter_of_the_state(monkeypatch):
    monkeypatch.setattr(adamw_8bit, "LEAST", 64 * 96)
    monkeypatch.setattr(adamw_8bit, "CHUNK", 640)
    losses = {}
    for name in ("adamw", "adamw_8bit"):
        model = small_model()
        optimizer = made(model, name)
        losses[name] = train(optimizer, model, 60)
    assert losses["adamw"][-1] < 0.9 * losses["adamw"][0]
    assert losses["adamw"] != losses["adamw_8bit"] == pytest.approx(losses["adamw"], rel=0.01)
    first, second = (optimizer.state[model[i].weight] for i in (0, 2))
    assert first["exp_avg"].dtype is torch.uint8 and second["exp_avg"].dtype is torch.float32
    used = sum(v.nbytes for v in first.values())
    assert used <= 0.27 * 8 * model[0].weight.numel()


def test_its_state_is_plain_and_goes_on_exactly():
    model = small_model()
    optimizer = made(model, "adamw_8bit")
    train(optimizer, model, 5)
    check_plain(optimizer.state_dict())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = copy.deepcopy(model)
    resumed = made(again, "adamw_8bit")
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert train(optimizer, model, 5, seed=1) == train(resumed, again, 5, seed=1)
    assert resumed.state[again[0].weight]["exp_avg"].dtype is torch.uint8
    assert torch.equal(model[0].weight, again[0].weight)


def test_a_checkpoint_of_another_optimizer_is_refused(tools):
    tools.trainer(max_steps=2, optimizer="adamw_8bit").fit()
    with pytest.raises(WeightsError, match=r"run.optimizer=adamw_8bit, this run has run.optimizer=adamw"):
        tools.trainer(resume="auto")
    assert tools.trainer(resume="auto", optimizer="adamw_8bit").progress.step == 2


def test_what_is_no_optimizer_is_refused(monkeypatch):
    from vlm.common import registry

    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    register_optimizer("none_at_all")(lambda groups, lr, betas, device: groups)
    with pytest.raises(ConfigError, match="run.optimizer='none_at_all' gave list"):
        made(nn.Linear(2, 2), "none_at_all")


SHARDED = """
import copy, torch
from torch import nn
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict, StateDictOptions
from vlm.runners.train.optim import build_optimizer
dist.init_process_group("gloo")
mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
def model(shard):
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(64, 301), nn.Tanh(), nn.Linear(301, 67))
    return fully_shard(found, mesh=mesh) if shard else found
def make(m, name):
    return build_optimizer(m, lr=1e-2, weight_decay=0.1, beta2=0.99, device=torch.device("cpu"), name=name)
def steps(m, o, count):
    for i in range(count):
        m(torch.randn(8, 64, generator=torch.Generator().manual_seed(i))).square().sum().backward()
        o.step(); o.zero_grad()
full = StateDictOptions(full_state_dict=True)
for name in ("adamw", "adamw_8bit"):
    whole, parts = model(False), model(True)
    one, two = make(whole, name), make(parts, name)
    steps(whole, one, 4); steps(parts, two, 4)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b.full_tensor(), rtol=0, atol=1e-7), name
    stored = copy.deepcopy(get_optimizer_state_dict(parts, two, options=full))
    again = model(True)
    again.load_state_dict({k: v.clone() for k, v in parts.state_dict().items()})
    three = make(again, name)
    if name == "adamw_8bit":
        codes = stored["state"]["0.weight"]["exp_avg"]
        assert codes.dtype is torch.uint8 and torch.equal(codes, one.state[whole[0].weight]["exp_avg"])
    set_optimizer_state_dict(again, three, stored, options=full)
    steps(parts, two, 2); steps(again, three, 2)
    for a, b in zip(parts.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.to_local(), b.to_local()), name
dist.destroy_process_group()
"""


@pytest.mark.heavy
def test_split_over_processes_it_has_the_same_bits(tmp_path):
    (tmp_path / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "sharded.py")], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
