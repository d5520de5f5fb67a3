"""Two processes with half the batch each are one process with the whole batch."""

import pytest
import torch
from safetensors.torch import load_file

from vlm.checkpoint.run_folder import RunDir, read_checkpoint

NO_DROPOUT = "model.llm.lora.dropout=0.0"  # ranks draw different masks


def test_two_gloo_processes_equal_one(tiny):
    numbers = {"max_steps": 20, "save_freq": 20, "accum_grad_iters": 2, "max_grad_norm": 5.0}
    process = tiny.start("two", NO_DROPOUT, "datasets.cc_sbu_align.batch_size=1", processes=2, **numbers)
    tiny.train("one", NO_DROPOUT, "datasets.cc_sbu_align.batch_size=2", **numbers)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    one, two = tiny.records("one"), tiny.records("two")
    assert len(one) == len(two) == 20
    assert [r["targets"] for r in one] == [r["targets"] for r in two]
    assert [r["samples"] for r in two] == [4] * 20
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], abs=1e-6, rel=1e-6)
    assert [r["grad_norm"] for r in two] == pytest.approx([r["grad_norm"] for r in one], rel=1e-4)
    losses = [[r["loss"] for r in tiny.records(name, "valid")] for name in ("one", "two")]
    assert len(losses[0]) == 5 and losses[1] == pytest.approx(losses[0], rel=1e-6)
    weights = [load_file(RunDir(tiny.folder / name).last() / "model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][k], weights[1][k], atol=1e-5) for k in weights[0])


def test_accumulation_equals_a_larger_batch(tiny):
    """Four micro-batches of one sample against one of four: the same text, the same losses."""
    numbers = {"max_steps": 5, "save_freq": 100, "val_freq": 100}
    tiny.train("large", NO_DROPOUT, "datasets.cc_sbu_align.batch_size=4", **numbers)
    tiny.train("micro", NO_DROPOUT, "datasets.cc_sbu_align.batch_size=1", accum_grad_iters=4, **numbers)
    large, micro = tiny.records("large"), tiny.records("micro")
    assert [r["targets"] for r in large] == [r["targets"] for r in micro]
    assert [r["loss"] for r in micro] == pytest.approx([r["loss"] for r in large], rel=1e-6)


def test_two_processes_become_one(tiny):
    """The data goes on where both were; counts are those of the whole run."""
    options = ("run.packing={max_tokens: 120, open_rows: 3}", "datasets.cc_sbu_align.batch_size=2")
    numbers = {"save_freq": 6, "val_freq": 100}
    process = tiny.start("run", *options, processes=2, max_steps=6, **numbers)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    states = [rank["loader"] for rank in read_checkpoint(RunDir(tiny.folder / "run").last())[1]["ranks"]]
    assert len(states) == 2 and all(state["pending"]["open"] for state in states)
    result = tiny.train("run", *options, resume="auto", max_steps=12, **numbers)
    records = tiny.records("run")
    assert result.step == 12 and [r["step"] for r in records] == list(range(1, 13))
    assert records[-1]["data/cc_sbu_align/samples"] == sum(r["samples"] for r in records)
    assert records[-1]["data/cc_sbu_align/share"] == 1.0 and 0 <= records[-1]["padding"] < 1
