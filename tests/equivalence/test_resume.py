"""A run that is killed and resumed is the same run, bit for bit."""

import random
import signal

import pytest
import torch
from safetensors.torch import load_file

from vlm.checkpoint.run_folder import RunDir, read_checkpoint


def same(one, other):
    """Deep equality with tensors compared bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_sigkill_at_a_random_step_and_resume_equal_a_straight_run(tiny):
    numbers = {"max_steps": 60, "accum_grad_iters": 2, "save_freq": 7, "val_freq": 10}
    process = tiny.start("killed", **numbers)
    tiny.train("straight", **numbers)  # while the other one starts
    tiny.wait_for_step("killed", random.SystemRandom().randint(8, 40), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert 8 <= len(tiny.records("killed")) < 60
    result = tiny.train("killed", resume="auto", **numbers)
    assert result.step == 60 and result.status == "finished"
    for kind in ("train", "valid"):
        straight, killed = tiny.records("straight", kind), tiny.records("killed", kind)
        assert [r["step"] for r in straight] == [r["step"] for r in killed]
        assert [r["loss"] for r in straight] == [r["loss"] for r in killed]
        if kind == "train":
            assert [(r["grad_norm"], r["lr"]) for r in straight] == [(r["grad_norm"], r["lr"]) for r in killed]
    folders = [RunDir(tiny.folder / name).last() for name in ("straight", "killed")]
    (tensors, state), (tensors2, state2) = map(read_checkpoint, folders)
    assert same(tensors, tensors2) and len(tensors) > 2
    seconds = [s["progress"].pop("seconds") for s in (state, state2)]
    valid_seconds = [s["progress"]["valid"].pop("seconds") for s in (state, state2)]
    assert all(x > 0 for x in seconds + valid_seconds)
    assert same(state, state2)


@pytest.mark.parametrize("scale", ["{}", "{llm.lora: 0.1}"])
def test_resume_from_a_path_into_another_folder(tiny, scale):
    tiny.train("first", max_steps=8, save_freq=3, lr_scale=scale)
    folder = tiny.folder / "first" / "checkpoints" / "step_00000006"
    tiny.train("second", max_steps=8, save_freq=3, resume_ckpt_path=folder, lr_scale=scale)
    assert [r["step"] for r in tiny.records("second")] == [7, 8]
    one, two = (load_file(RunDir(tiny.folder / name).last() / "model.safetensors") for name in ("first", "second"))
    assert same(one, two)


def test_a_factor_of_the_learning_rate_is_of_the_named_parameters_alone(tiny):
    """After one step of AdamW a parameter has moved by about its rate, whatever its gradient."""
    moved = {}
    for name, scale in (("plain", "{}"), ("scaled", "{bridge.1: 0.25}")):
        tiny.train(name, max_steps=1, save_freq=0, warmup_steps=0, weight_decay=0, lr_scale=scale)
        moved[name] = load_file(RunDir(tiny.folder / name).last() / "model.safetensors")
    tiny.train("start", max_steps=1, save_freq=0, warmup_steps=0, init_lr=1e-30)
    start = load_file(RunDir(tiny.folder / "start").last() / "model.safetensors")
    for key, before in start.items():
        if "lora_A" in key:  # its gradient is zero while the other factor is
            continue
        plain, scaled = ((moved[name][key] - before).abs().max() for name in ("plain", "scaled"))
        assert plain > 0 and scaled / plain == pytest.approx(0.25 if key.startswith("bridge.1") else 1, rel=0.01), key


def test_a_factor_that_was_not_there_before_counts_from_the_resumed_step_on(tiny):
    tiny.train("first", max_steps=4, save_freq=3)
    folder = tiny.folder / "first" / "checkpoints" / "step_00000003"
    tiny.train("second", max_steps=4, save_freq=3, resume_ckpt_path=folder, lr_scale="{bridge.1: 1.0e-12}")
    before, after = (load_file(f / "model.safetensors") for f in (folder, RunDir(tiny.folder / "second").last()))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if name.startswith("bridge.1")} and len(before) > len(still) > 0
