"""The number of threads follows from the machine, its processes and what the user set."""

import os

import pytest

from vlm.common.processes import threads as module
from vlm.common.processes.threads import Threads, choose, usable_cores, wait_passively


@pytest.mark.parametrize(
    ("default", "workers", "env", "cores", "count"),
    [
        (16, 0, {}, 16, 16),
        (64, 0, {}, 8, 8),  # a container's quota below the machine's cores
        (16, 4, {}, 16, 12),
        (4, 4, {}, 4, 2),
        (2, 4, {}, 2, 1),
        (1, 4, {}, 1, 1),
        (16, 0, {"LOCAL_WORLD_SIZE": "4"}, 16, 4),
        (16, 3, {"LOCAL_WORLD_SIZE": "4"}, 16, 2),
        (16, 0, {"SLURM_NTASKS_PER_NODE": "2"}, 16, 8),
        (8, 0, {"LOCAL_WORLD_SIZE": "16"}, 8, 1),
        (3, 9, {"OMP_NUM_THREADS": "3"}, 64, 3),
        (1, 0, {}, 64, 1),  # set by the program
    ],
)
def test_choice(default, workers, env, cores, count):
    found = choose(default, workers, env, cores)
    assert found.count == count and f"{count} thread" in found.line() and f"{cores} cores usable" in found.line()


def test_what_is_said_of_a_busy_machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert Threads(2, 0, 2, 4).problem(0.5) == Threads(2, 0, 2, 4).problem(None) == ""
    assert "load 9.0 on 4 cores" in Threads(2, 0, 1, 4).problem(9.0)
    problem = Threads(4, 0, 4, 8, "OMP_NUM_THREADS").problem(0.0)
    assert "4 processes x 4 threads on 8 cores; set OMP_NUM_THREADS=2" in problem


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 7),
        ({"cpu.max": "damaged"}, 7),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 7),
        ({}, 7),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("table", "files", "cores"),
    [
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000", "cpu.max": "max 1"}, 2),
        ("1:cpu,cpuacct:/x\n0::/\n", {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, 4),
        ("0::/../other\n", {"other/cpu.max": "100000 100000"}, 7),
        ("damaged", {}, 7),
    ],
)
def test_the_quotas_of_nested_groups_count(tmp_path, monkeypatch, table, files, cores):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "groups" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(table)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    assert usable_cores(tmp_path / "groups", tmp_path / "own") == cores


def test_waiting_threads_sleep_unless_the_user_chose():
    env = {}
    wait_passively(env)
    assert env == {"OMP_WAIT_POLICY": "PASSIVE"}
    for given in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"KMP_BLOCKTIME": "200"}, {"GOMP_SPINCOUNT": "9"}):
        before = dict(given)
        wait_passively(given)
        assert given == before
