"""Numbers of a step's speed, profiles, and compiled blocks."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.equivalence.tiny import Tiny
from vlm.checkpoint.run_folder import RunDir
from vlm.common.errors import ConfigError
from vlm.config.run import Profiling
from vlm.models.loss import HeadLoss
from vlm.runners.train.speed import compiled, flops, meter, peaks
from vlm.runners.train.speed.flops import Count, Counter, FlopCounts, Size
from vlm.runners.train.speed.profile import Profile
from vlm.runners.train.trackers import speed_line, window_mean


class Collect:
    def __init__(self):
        self.records = []

    def log(self, record):
        self.records.append(record)

    def close(self):
        pass


def test_the_counter_knows_products_attention_and_the_loss():
    layer, hidden = nn.Linear(8, 16), torch.randn(3, 8)
    with Counter() as counter:
        layer(hidden).sum().backward()
    assert counter.flops == 2 * 2 * 3 * 8 * 16  # forward, and the gradient of the weight
    q = torch.randn(2, 4, 5, 16, requires_grad=True)
    k, v = torch.randn(2, 4, 7, 16), torch.randn(2, 4, 7, 16)
    with Counter() as counter:
        out = F.scaled_dot_product_attention(q, k, v)
        assert counter.flops == 4 * 2 * 4 * 5 * 7 * 16
        out.sum().backward()
    assert counter.flops == (4 + 10) * 2 * 4 * 5 * 7 * 16
    with Counter() as counter:
        loss = HeadLoss.apply(hidden.requires_grad_(), torch.randn(50, 8), None, torch.tensor([1, 2, 3]))
        loss.backward()
    assert counter.flops == 2 * 2 * 3 * 8 * 50


def test_a_step_is_scaled_from_the_nearest_and_counted_if_none_is_near():
    count = Count(Size(100, 30), visual=900, rest=3000, visual_tokens=50)
    assert count.scaled(Size(100, 30)) == 3900
    assert count.scaled(Size(160, 20)) == pytest.approx(600 + 3000 * (160 + 100 / 3) / 150)
    assert Size(100, 30).distance(Size(150, 20)) == 1.5 and Size(10, 0).distance(Size(10, 3)) == float("inf")
    assert Size(10, 0).distance(Size(5, 0)) == 2


def test_log_lines_have_speed_and_share_of_the_peak(tools, monkeypatch):
    monkeypatch.setattr(meter, "WORTH_MEASURING", 0)
    monkeypatch.setattr(meter, "peak", lambda device, dtype: 1e9)
    seen = Collect()
    tools.trainer(max_steps=3).fit([seen])
    monkeypatch.setattr(flops, "MOST", 0)
    plain = Collect()
    torch.manual_seed(0)
    tools.trainer("plain", max_steps=3).fit([plain])
    steps = [r for r in seen.records if r["kind"] == "train"]
    for record in steps:
        assert record["flops"] > 0 and record["samples_per_second"] == pytest.approx(2 / record["seconds"])
        assert record["mfu"] == pytest.approx(record["flops"] / record["seconds"] / 1e9)
    mean = window_mean(steps)
    total = sum(r["flops"] for r in steps) / sum(r["seconds"] for r in steps)
    assert mean["tflops"] == pytest.approx(total / 1e12) and mean["mfu"] == pytest.approx(total / 1e9)
    assert "TFLOP/s (MFU" in speed_line(mean)
    without = [r for r in plain.records if r["kind"] == "train"]
    assert not {"flops", "tflops", "mfu"} & set(without[0]) and speed_line(window_mean(without)) == ""


def test_few_steps_of_a_run_are_counted(tools):
    counts = FlopCounts(tools.model())
    for length in (4, 5, 6, 40, 30):
        batch = tools.batch(2, length, 0)
        assert (counts.of([batch]) is None) == (length == 4)
        with counts.counting([batch]):
            counts.model(batch)
    assert len(counts.known) == 2


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989),
        ("NVIDIA H100 PCIe", torch.float32, 51),
        ("NVIDIA H100 NVL", torch.float16, 835),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312),
        ("NVIDIA L40S", torch.bfloat16, 362),
        ("NVIDIA L4", torch.bfloat16, 121),
        ("NVIDIA A10G", torch.bfloat16, 70),
        ("NVIDIA GeForce RTX 4090", torch.float32, 82.6),
        ("Tesla V100-SXM2-16GB", torch.float16, 125),
        ("Tesla V100-SXM2-16GB", torch.bfloat16, None),
        ("some card", torch.bfloat16, None),
    ],
)
def test_peaks(name, dtype, tera):
    assert peaks.listed_peak(name, dtype) == (tera and tera * 1e12)


def test_a_peak_is_measured_once(monkeypatch):
    monkeypatch.setattr(peaks, "SIDE", 64)
    monkeypatch.setattr(peaks, "SECONDS", 0.0)
    peaks.measured_peak.cache_clear()
    found = peaks.peak(torch.device("cpu"), torch.bfloat16)
    assert found > 0 and peaks.peak(torch.device("cpu"), torch.bfloat16) == found
    peaks.measured_peak.cache_clear()


def test_a_run_that_ends_before_the_profile_says_so(tmp_path, caplog):
    profile = Profile(Profiling(first=5), tmp_path)
    with profile.step(1):
        pass
    profile.close()
    assert "did not get to step 5" in caplog.text and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("steps", "recorded"), [(2, [2, 3]), (50, [2, 3, 4])])
def test_a_profile_is_written_and_changes_nothing(tools, steps, recorded):
    losses = []
    for name, options in (("plain", None), ("profiled", Profiling(first=2, steps=steps))):
        torch.manual_seed(0)
        seen = Collect()
        tools.trainer(name, max_steps=4, profile=options).fit([seen])
        losses.append([r["loss"] for r in seen.records if r["kind"] == "train"])
    assert losses[0] == losses[1] and not (tools.path / "plain" / "profile").exists()
    folder = tools.path / "profiled" / "profile"
    found = json.loads((folder / "operations.json").read_text())
    assert found["steps"] == recorded and 0 < len(found["operations"]) <= 10
    shares = [operation["share"] for operation in found["operations"]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.0001
    assert "calls  shapes" in (folder / "operations.txt").read_text()
    assert (folder / "trace.json.gz").stat().st_size > 1000
    (folder / "notes.txt").write_text("mine")
    RunDir(folder.parent).prepare(overwrite=True)
    assert [f.name for f in folder.iterdir()] == ["notes.txt"]


def test_without_a_compiler_there_is_one_message(monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    def fails(function, **options):
        def call(*args):
            raise BackendCompilerFailed(function, RuntimeError("no g++"), None)

        return call

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ConfigError, match="(?s)run.compile=true, but torch cannot compile for cpu.*run.compile=false"):
        compiled.compile_model(nn.Linear(2, 2), torch.device("cpu"))


@pytest.mark.heavy
def test_compiled_blocks_train_as_others_do(tmp_path):
    """In one row, with LoRA, inserts and recomputation, over changing lengths; and the count changes no bit."""
    from torch._dynamo.utils import counters

    tiny = Tiny(tmp_path)
    more = [
        "model.llm.lora.dropout=0",
        "model.inserts=[{name: adapter, bottleneck: 8}]",
        "model.train=[bridge.1.*, llm.lora, inserts.*]",
    ]
    numbers = {"max_steps": 6, "val_freq": 1000, "iters_per_epoch": 1000, "save_freq": 1000}
    tiny.train("plain", *more, **numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops, "MOST", 0)
        tiny.train("uncounted", *more, **numbers)
        counters.clear()
        compile_ = torch.compile
        # the same graphs and guards as with inductor, whose C++ takes a minute; the check for a compiler runs it
        patch.setattr(torch, "compile", lambda f, **options: compile_(f, backend="aot_eager", **options))
        tiny.train("compiled", *more, compile="true", **numbers)
        graphs = counters["stats"]["unique_graphs"]
        recomputed = {**numbers, "max_steps": 3, "activation_checkpointing": "torch"}
        tiny.train("recomputed", *more, compile="true", **recomputed)
    plain, uncounted, found = (tiny.records(name) for name in ("plain", "uncounted", "compiled"))
    assert [(r["loss"], r["grad_norm"]) for r in plain] == [(r["loss"], r["grad_norm"]) for r in uncounted]
    assert len({r["tokens"] for r in found}) > 3
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in plain], rel=1e-5)
    assert [r["grad_norm"] for r in found] == pytest.approx([r["grad_norm"] for r in plain], rel=1e-3)
    assert 3 <= graphs <= 24  # not one for each length and layer
    assert [r["loss"] for r in tiny.records("recomputed")] == pytest.approx([r["loss"] for r in plain[:3]], rel=1e-5)
