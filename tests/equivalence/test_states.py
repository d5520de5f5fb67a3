"""Checkpoints of sharded runs: resumed == straight, and any split reads what any other has written."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from vlm.checkpoint.run_folder import RunDir, read_checkpoint
from vlm.checkpoint.shards.parts import part_files
from vlm.checkpoint.shards.reader import PiecesReader

from .test_resume import same
from .tiny import HERE

SPLITS = ("none", "llm", "all")
NUMBERS = {"save_freq": 4, "val_freq": 4, "deterministic": True, "keep_last": 0}


def state_of(folder):
    """Weights, optimiser state by parameter name, and everything else."""
    tensors, state = read_checkpoint(folder)
    optimizer, names = state.pop("optimizer"), state.pop("names")
    if optimizer.get("form") != "parts":
        states = {name: optimizer["state"][i] for i, name in enumerate(names)}
    else:
        reader = PiecesReader(part_files(folder))
        whole = {key: torch.full(fact.shape, 7.0, dtype=fact.dtype) for key, fact in reader.facts.items()}
        reader.read_into(whole, "test")
        states = {name: {**optimizer["plain"][name]} for name in names}
        for key, value in whole.items():
            states[key.partition("/")[2]][key.partition("/")[0]] = value
    state["progress"].pop("seconds")
    state["progress"]["valid"].pop("seconds")
    return tensors, states, state


def run_cases(tiny, cases, processes):
    """Each case is ``(what, name, options)``; all run in one group."""
    file = tiny.folder / f"cases{processes}.json"
    file.write_text(json.dumps([[what, str(tiny.config), *options] for what, _, options in cases]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(HERE / "train_states.py"), str(file)], env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def case(tiny, what, name, split, **changes):
    options = [*tiny.options(name, **{**NUMBERS, **changes}), f"run.parallel.shard={split}"]
    return what, name, options


def last(tiny, name):
    return RunDir(tiny.folder / name).last()


@pytest.mark.heavy
def test_any_split_resumes_bit_for_bit_and_reads_any_other(tiny):
    two = []
    for split in SPLITS:
        straight, half = f"straight_{split}", f"half_{split}"
        there = tiny.folder / straight / "checkpoints" / "step_00000004"
        two.append(case(tiny, "train", straight, split, max_steps=8))
        two.append(case(tiny, "train", half, split, max_steps=8, resume=there))
    pairs = [(one, other) for one in SPLITS for other in SPLITS]
    copies = [(f"{one}_{other}_{n}", one, other, n) for one, other in pairs for n in (2, 4) if {one, other} != {"none"}]
    by_number = {2: two, 4: []}
    for name, one, other, number in copies:
        source = tiny.folder / f"straight_{one}"
        by_number[number].append(case(tiny, "copy", name, other, max_steps=8, resume=source))
    run_cases(tiny, by_number[2], 2)
    run_cases(tiny, by_number[4], 4)
    for split in SPLITS:
        straight, half = (state_of(last(tiny, f"{kind}_{split}")) for kind in ("straight", "half"))
        assert same(straight, half) and len(straight[1]) > 2, split
        logs = [[(r["step"], r["loss"], r["grad_norm"]) for r in tiny.records(f"{kind}_{split}") if r["step"] > 4]
                for kind in ("straight", "half")]  # fmt: skip
        assert logs[0] == logs[1] and len(logs[0]) == 4
        files = [f.name for f in part_files(last(tiny, f"half_{split}"))]
        assert len(files) == (0 if split == "none" else 2)
    for name, one, _, _ in copies:
        before, after = state_of(last(tiny, f"straight_{one}")), state_of(last(tiny, name))
        assert same(before[:2], after[:2]), name
    for split in ("llm", "all"):  # one process without a group goes on as well
        result = tiny.train(f"alone_{split}", resume=tiny.folder / f"straight_{split}", **{**NUMBERS, "max_steps": 9})
        assert result.step == 9


@pytest.mark.heavy
def test_the_others_of_a_sharded_run_say_which_process_ended_and_why(tiny):
    started = []
    for what in ("fail", "kill"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        file = tiny.folder / f"{what}.json"
        file.write_text(json.dumps([[what, str(tiny.config), *case(tiny, what, what, "all", max_steps=50)[2]]]))
        for rank in range(2):
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env = {**os.environ, **{k: str(v) for k, v in world.items()}, "PYTHONPATH": str(HERE.parents[1])}
            command = [sys.executable, str(HERE / "train_states.py"), str(file)]
            started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=180)[1] for process in started]
    assert started[3].returncode == -signal.SIGKILL and all(process.returncode for process in started)
    pids = [process.pid for process in started]
    assert f"process 0 stops because process 1 of 2 (pid {pids[1]}) ended: no such picture\n" in said[0], said[0]
    assert f"process 0 stops because process 1 of 2 (pid {pids[3]}) is gone without a word" in said[2], said[2]
