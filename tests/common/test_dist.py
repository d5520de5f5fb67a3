"""Devices, ranks and seeds."""

import random

import numpy as np
import pytest
import torch

from vlm.common import dist
from vlm.common.dist import World, world_from_env
from vlm.common.errors import UserError


@pytest.mark.parametrize("env, world", [
    ({}, World(0, 1, 0)),
    ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, World(3, 4, 1)),
    ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "MASTER_ADDR": "x"}, World(5, 8, 1)),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, World(0, 1, 0)),
    ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "SLURM_PROCID": "0", "MASTER_ADDR": "x"}, World(1, 2, 1)),
])  # fmt: skip
def test_world_from_the_environment(env, world):
    assert world_from_env(env) == world


def test_part_of_the_variables_is_an_error():
    with pytest.raises(UserError, match="missing: RANK, LOCAL_RANK"):
        world_from_env({"WORLD_SIZE": "2"})


def test_one_process_needs_no_group():
    world, device = dist.init("cpu", env={})
    assert (world, device) == (World(), torch.device("cpu"))
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    assert dist.gather_objects("x") == ["x"] and dist.broadcast_object("y") == "y"
    tensor = torch.ones(2)
    assert dist.all_reduce_sum(tensor) is tensor and tensor.tolist() == [1.0, 1.0]
    dist.barrier()
    dist.destroy()


def test_group_of_one_gives_the_same(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert (dist.rank(), dist.world_size()) == (0, 1)
        assert dist.gather_objects({"a": 1}) == [{"a": 1}] and dist.broadcast_object([2]) == [2]
        dist.barrier()
    finally:
        dist.destroy()
    assert not torch.distributed.is_initialized()


def test_device_names():
    assert dist.pick_device("cpu") == torch.device("cpu")
    expected = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    assert dist.pick_device("auto").type == expected
    with pytest.raises(UserError, match="allowed: auto, cpu"):
        dist.pick_device("tpu")


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert dist.pick_device("auto", local_rank=1) == torch.device("cuda", 1)
    assert dist.pick_device("cuda:0", local_rank=1) == torch.device("cuda", 0)
    with pytest.raises(UserError, match="cuda:2 was asked for, but this machine has 2"):
        dist.pick_device("auto", local_rank=2)
    with pytest.raises(UserError, match="this machine has cuda"):
        dist.pick_device("mps")


def test_seeds_differ_by_rank_and_repeat():
    def draw(seed, rank):
        dist.seed_everything(seed, rank)
        return random.random(), np.random.random(), torch.rand(1).item()

    assert draw(7, 1) == draw(7, 1) == draw(8, 0)
    assert all(a != b for a, b in zip(draw(7, 0), draw(7, 1), strict=True))


def test_cpu_facts():
    cpu = torch.device("cpu")
    assert dist.peak_memory_mib(cpu) > 10 and dist.device_rng_state(cpu) is None
    assert dist.supports_bf16(cpu) and dist.supports_fused_optimizer(cpu)
    assert dist.device_name(cpu) == "cpu" and dist.sum_dtype(cpu) == torch.float64
    dist.set_device_rng_state(None, cpu)
