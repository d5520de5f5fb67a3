"""``run.global_batch``: the same samples and the same losses at any number of processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from vlm.checkpoint.run_folder import RunDir

from .tiny import HERE

NO_DROPOUT = "model.llm.lora.dropout=0.0"
JOINT = [
    "run.mixing=joint",
    "run.loss_reduction=groups",
    "datasets.cc_sbu_align.sample_ratio=1",
    "datasets.cc_sbu_align.group=a",
    "datasets.second.group=a",
    "datasets.shards.group=b",
]
CASES = {
    # dropout stays: 2 x 4 divides 8, so that a micro-batch has the same samples wherever it is
    "dropout": ["run.global_batch=8", "run.mixing=sample", "run.batch_size=2"],
    # shards need the same number of forward calls everywhere, though processes have different numbers of packed rows
    "packed": [
        "run.global_batch=9",
        "run.packing={max_tokens: 90}",
        "run.batch_size=1",
        NO_DROPOUT,
        "several",
        "run.parallel.shard=all",
    ],
    "joint": ["run.global_batch=10", "run.batch_size=2", NO_DROPOUT, *JOINT],
}


def steps_of(tiny, name):
    """Number of a step -> samples of each micro-batch, of each process."""
    found = {}
    for line in (tiny.folder / f"{name}.ids").read_text().splitlines():
        step, batches = json.loads(line)
        found.setdefault(step, []).append(batches)
    return found


@pytest.mark.heavy
def test_1_2_4_1_processes_are_one(three):
    """Takes about 40 s of processor time; compares with a straight run of one process."""
    command = [sys.executable, str(HERE / "train_elastic.py"), str(three.config), str(three.folder), json.dumps(CASES)]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert found.returncode == 0, found.stderr
    said = {file.name: file.read_text()[-2000:] for file in three.folder.glob("*.log*")}
    assert json.loads(found.stdout) == {name: [0] * 9 for name in CASES}, said
    for name, options in CASES.items():
        size = int(options[0].partition("=")[2])
        straight, elastic = (steps_of(three, f"{name}.{kind}") for kind in ("straight", "elastic"))
        assert [len(ranks) for ranks in elastic.values()] == [1, 1, 2, 2, 4, 4, 1, 1]
        for one, several in zip(straight.values(), elastic.values(), strict=True):
            expected, names = (sorted(n for rank in s for b in rank for n in b) for s in (one, several))
            assert names == expected and len(names) == size
        one, several = (three.records(f"{name}.{kind}") for kind in ("straight", "elastic"))
        assert [r["loss"] for r in several] == pytest.approx([r["loss"] for r in one], rel=1e-6), name
        assert [r["grad_norm"] for r in several] == pytest.approx([r["grad_norm"] for r in one], rel=1e-4), name
        assert [r["samples"] for r in several] == [size] * 8
        assert several[-1]["data/shards/samples"] == one[-1]["data/shards/samples"]
        weights = [
            load_file(RunDir(three.folder / f"{name}.{k}").last() / "model.safetensors")
            for k in ("straight", "elastic")
        ]
        assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0])
    assert any(len({len(rank) for rank in ranks}) > 1 for ranks in steps_of(three, "packed.elastic").values())
