"""``vlm plan``: what is counted without numbers is what a real step needs; options that cannot be planned."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlm.cli.main import main
from vlm.common.errors import ConfigError, UserError
from vlm.config.api import load_config
from vlm.config.run import Parallel
from vlm.runners.plan import devices
from vlm.runners.plan.batch import Lengths, batch_size_of, batches_of
from vlm.runners.plan.depth import Stack, stacks_of
from vlm.runners.plan.devices import GIB, Device
from vlm.runners.plan.fake import Faking, Memory, Work, counting
from vlm.runners.plan.knobs import solve_batch_size, solve_shard, turn
from vlm.runners.plan.model import build_fake
from vlm.runners.plan.plan import Planner, Request, kept, precision_on
from vlm.runners.plan.shards import share_of
from vlm.runners.plan.sources import load_for_plan

from ..equivalence.tiny import Tiny

LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 8,
    "num_attention_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
MODEL = {
    "vision": {
        "name": "eva_vit", "image_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 7, "num_heads": 2,
        "mlp_ratio": 2.0, "precision": "fp32",
    },
    "bridge": [{"name": "linear"}],
    "fusion": {"name": "splice"},
    "inserts": [{"name": "adapter", "every": 2}],
    "llm": {"name": "hf", "config": LLAMA, "dtype": "fp32"},
    "template": {"name": "user_bot"},
    "image": {"size": 28},
    "train": ["bridge.*", "inserts.*"],
}  # fmt: skip
RUN = {"task": "image_text_pretrain", "max_steps": 10, "device": "cpu", "batch_size_train": 2}
SPEEDS = {"float32": 1e12, "bfloat16": 2e12}
ONE = Device("test", "cuda", 2**40, SPEEDS, 1e11, "made up")


@pytest.fixture(scope="module")
def cfg():
    return load_config({"model": MODEL, "run": RUN}, check="none")


@pytest.fixture(scope="module")
def planner(cfg):
    return Planner(cfg, Request(ONE, lengths=Lengths(12, 1)))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))


def test_structure_is_real_and_values_are_not():
    faking = Faking()
    with faking:
        hidden = torch.zeros(3, 4)
        keep = torch.tensor([True, False, True])
        rows = hidden[keep]
        places = torch.full((2,), 7).cumsum(0)
    assert rows.shape == (2, 4) and type(rows).__name__ == "FakeTensor"
    assert places.tolist() == [7, 14]


def test_memory_is_followed_to_the_peak():
    faking, memory, work = Faking(), Memory(), Work()
    layer = nn.Linear(256, 512, bias=False, device="meta")
    faking.adopt(layer)
    memory.ignore(layer.weight)
    layer.weight.register_post_accumulate_grad_hook(lambda p: memory.move(p.grad, "gradients"))
    with faking, counting(faking, memory, work):
        memory.enter("forward", "activations")
        x = torch.zeros(1024, 256)
        loss = layer(x).relu().sum()
        memory.enter("backward", "workspace")
        loss.backward()
    mib = 2**20
    assert memory.peaks["forward"]["activations"] == 5 * mib  # x, the product, its relu
    assert memory.live["gradients"] == 256 * 512 * 4
    assert memory.peaks["backward"].total() > memory.peaks["forward"].total()
    assert work.flops == 2 * 2 * 1024 * 256 * 512  # forwards, and the gradient of the weight


@pytest.mark.heavy
def test_few_layers_say_what_all_layers_need(planner, monkeypatch):
    batches = batches_of(planner.cfg, planner.faked.model, 1, planner.request.lengths)
    stacks = {stack.name: stack for stack in stacks_of(planner.faked.model)}
    assert [(s.depth, s.period, s.few) for s in stacks.values()] == [(7, 1, 2), (8, 2, 4)]
    few = planner.trace(batches, batches.largest)
    monkeypatch.setattr(Stack, "cuts", property(lambda stack: False))
    every = planner.trace(batches, batches.largest)
    assert few.flops == every.flops and few.operations == every.operations
    for phase, peak in few.peaks.items():
        assert peak.total() == pytest.approx(every.peaks[phase].total(), rel=0.02), phase


@pytest.mark.heavy
def test_what_stays_is_counted_exactly(planner):
    model = planner.faked.model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    still = planner.faked.still
    assert sum(part.trained for part in still.parts) == trained
    assert still.weights == sum(p.numel() for p in model.parameters()) * 4
    assert 2 * 4 * trained <= still.optimizer <= 2 * 4 * trained + 1024 * len(list(model.parameters()))
    assert still.gradients >= 4 * trained


@pytest.mark.heavy
def test_batches_of_given_lengths(cfg, planner):
    plan = planner.plan()
    assert plan.batch_size == plan.samples == 2
    assert plan.positions["longest"] == 12 + planner.faked.model.visual_tokens()
    packed = replace(
        cfg, run=load_config({"model": MODEL, "run": {**RUN, "packing": {"max_tokens": 64}}}, check="none").run
    )
    rows = batches_of(packed, planner.faked.model, 1, planner.request.lengths)
    assert rows.samples == 2 * (64 // int(plan.positions["longest"]))
    tight = replace(packed, run=replace(packed.run, packing=replace(packed.run.packing, max_tokens=8)))
    with pytest.raises(UserError, match="does not fit into a row of run.packing"):
        planner.plan(tight)


@pytest.mark.heavy
def test_a_step_has_the_samples_of_the_global_batch(cfg, planner, tmp_path):
    packing = {"max_tokens": 42}  # two samples in a row
    for more, micro, rows in (({}, 2, 2), ({"packing": packing}, 1, 2), ({"batch_size_train": 8}, 1, 3)):
        run = load_config({"model": MODEL, "run": {**RUN, "global_batch": 6, **more}}, check="none").run
        given = batches_of(replace(cfg, run=run), planner.faked.model, 2, planner.request.lengths)
        assert (given.samples, given.micro, len(given.largest.ids)) == (6, micro, rows), more
    for packed in ([], ["run.packing={max_tokens: 64}", "run.mixing=sample"]):
        tiny = Tiny(tmp_path).load("planned", *packed, global_batch=6, max_steps="null", max_epoch=2)
        drawn = batches_of(tiny, build_fake(tiny, torch.device("cpu"), precision_on(tiny.run, ONE)).model, 2, None)
        assert drawn.samples == 6 and drawn.largest.num_samples <= 3, packed


def test_a_process_has_no_more_samples_than_its_part_of_the_global_batch(cfg):
    def plan(cfg):
        return SimpleNamespace(batch_size=batch_size_of(cfg), peak=1, free=GIB, fits=True)

    wide = replace(cfg, run=replace(cfg.run, global_batch=6))
    request = Request(ONE, processes=2)
    assert solve_batch_size(SimpleNamespace(cfg=wide, request=request, plan=plan)).batch_size == 3


class Linear:
    """Plans whose peak grows by 7 bytes with each sample, on a device of ``memory`` bytes."""

    def __init__(self, cfg, memory):
        self.cfg, self.memory, self.asked = cfg, memory, 0

    def plan(self, cfg):
        self.asked += 1
        size = batch_size_of(cfg)
        peak = 100 + 7 * size
        known = {"peak": peak, "free": self.memory - peak, "fits": peak <= self.memory, "capacity": self.memory}
        return SimpleNamespace(batch_size=size, device="test", **known)


@pytest.mark.parametrize("size", [1, 2, 3, 50, 1000])
def test_solving_finds_the_largest_batch(cfg, size):
    planner = Linear(cfg, 100 + 7 * size + 3)
    assert solve_batch_size(planner).batch_size == size
    assert planner.asked <= 5


def test_solving_says_what_is_needed(cfg):
    with pytest.raises(ConfigError, match=r"one sample does not fit on test: .* GiB are needed"):
        solve_batch_size(Linear(cfg, 50))


@pytest.mark.heavy
def test_changes_are_planned(cfg, planner):
    found = {knob.change: knob for knob in turn(cfg, planner.request, planner.plan())}
    assert "run.activation_checkpointing=torch" in found
    assert all(knob.saved > 0 for knob in found.values())


@pytest.mark.heavy
def test_shares(cfg, planner):
    model, parallel = planner.faked.model, Parallel(shard="all", frozen="shard")
    whole = share_of(model, Parallel(), 4, 2**40)
    split = share_of(model, parallel, 4, 2**40)
    assert split.weights == pytest.approx(whole.weights / 4, rel=0.01) and split.gradients == 0.25
    assert whole.copies and not split.copies and 0 < split.gathered < whole.weights
    assert share_of(model, replace(parallel, replicate=2), 4, 2**40).gradients == 0.5


def test_sharding_needs_several_devices(cfg):
    with pytest.raises(ConfigError, match="shards need several"):
        solve_shard(cfg, Request(ONE))


def test_efficiency_is_learnt_and_named():
    assert devices.efficiency(ONE, "float32")[0] == devices.ASSUMED
    devices.learn(ONE, "float32", 0.4)
    assert devices.learn(ONE, "float32", 0.6) == pytest.approx(0.5)
    assert "measured in 2 runs" in devices.efficiency(ONE, "float32")[1]
    file = devices.calibration_file()
    for damaged in (f'{{"{ONE.name}": []}}', f'{{"{ONE.name}": {{"float32": {{"efficiency": 0.4}}}}}}', "[]", "{"):
        file.write_text(damaged)
        assert devices.efficiency(ONE, "float32")[0] == devices.ASSUMED
        assert devices.learn(ONE, "float32", 0.4) == 0.4


def test_devices():
    found = devices.device_named("a100-80")
    assert found.memory < 80 * GIB and found.flops["bfloat16"] == 312e12
    with pytest.raises(UserError, match="unknown device; did you mean 'a100-80'"):
        devices.device_named("a100-800")


def test_paths_that_are_open_need_not_be_there(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"model": {**MODEL}, "run": RUN, "datasets": {}}))
    assert load_for_plan(str(file), ["run.seed=3"]).run.seed == 3


def test_checkpoints_that_are_kept(cfg):
    run = replace(cfg.run, save_freq=2, keep_last=3, keep_every=5)
    assert kept(run, 10) == 3 + 2 + 1
    assert kept(replace(run, keep_last=0, keep_every=0), 10) == 5 + 1


@pytest.mark.heavy
def test_command(tmp_path, capsys):
    file, out = tmp_path / "mine.yaml", tmp_path / "plan.json"
    file.write_text(json.dumps({"model": MODEL, "run": RUN}))
    command = ["plan", str(file), "--gpu", "4090", "--tokens", "12", "--price", "2", "--json", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "peak memory of a device" in shown and "fits" in shown and "cost" in shown
    plan = json.loads(out.read_text())["plans"][0]
    assert plan["peak"] == sum(plan["memory"].values()) and plan["memory"]["allowance"] == GIB


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gpu", "4091", "--tokens", "8"], "unknown device; did you mean '4090'"),
        (["--images", "2"], "--images goes with --tokens"),
        (["--tokens", "8", "--solve", "shard"], "the plan is for one device"),
        pytest.param([], "no dataset of this configuration can be read", marks=pytest.mark.heavy),
        (["--tokens", "8", "--options", "run.parallel.shard=all"], "but this run has one"),
        (["--tokens", "8", "--options", "run.max_step=3"], "max_step"),
        (
            ["--tokens", "8", "--options", "model.llm.config=null", "model.llm.path=/nowhere"],
            "no language model in /nowhere (config.json is missing)",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_message(tmp_path, capsys, more, message):
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"model": MODEL, "run": RUN}))
    more = more if "--gpu" in more else [*more, "--gpu", "4090"]
    assert main(["plan", str(file), *more]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("error:") == 1


@pytest.mark.heavy
def test_predictions_are_what_the_allocator_sees():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.plan", "--size", "small", "--only", "l", "--variant", "as published"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    found = [float(x) for x in re.findall(r"step alone ([0-9.]+)", done.stdout)]
    assert len(found) == 3, done.stderr[-2000:]  # lynx, open_flamingo, visualcla
    assert all(ratio == pytest.approx(1, abs=0.1) for ratio in found), done.stdout
