"""Spikes of the loss and steps that do not end."""

import json
import logging
import math
import random
import re
import time

import pytest
import torch

from vlm.checkpoint.run_folder import RunDir, check_plain, read_checkpoint
from vlm.cli.main import main
from vlm.common.errors import ConfigError, UserError
from vlm.config.run import SpikeLimits
from vlm.runners.replay.record import Number
from vlm.runners.replay.spikes import scored
from vlm.runners.train.step import Stepper
from vlm.runners.train.trackers import RunInfo, open_trackers, read_log
from vlm.runners.train.watch.spikes import ENOUGH, LEVEL, SpikeError, SpikeGuard
from vlm.runners.train.watch.stalls import Watch, Watchdog


def fed(action="warn", steps=60, noise=0.1, **limits):
    """A guard that has seen a falling, noisy loss."""
    guard, draw = SpikeGuard(action, SpikeLimits(**limits), "output/mine"), random.Random(0)
    for step in range(steps):
        assert guard.judge(2 * math.exp(-step / 40) + noise * draw.random(), 1 + noise * draw.random()) is None
    return guard


@pytest.mark.parametrize(
    "loss, norm, quantity", [(9.0, 1.0, "loss"), (0.6, 40.0, "gradient norm"), (9.0, 4000.0, "gradient norm")]
)
def test_a_jump_of_the_loss_or_the_norm_is_a_spike_that_changes_no_statistics(loss, norm, quantity):
    guard = fed()
    before = guard.history.scores(1.0, 1.0)
    spike = guard.judge(loss, norm)
    assert spike.quantity == quantity and spike.value > spike.most > spike.limit.median
    assert guard.history.scores(1.0, 1.0) == before and guard.judge(0.5, 1.0) is None


@pytest.mark.parametrize("loss, norm", [(0.001, 1.0), (0.6, 0.0), (1.2, 1.2)])
def test_what_falls_or_hardly_rises_is_none(loss, norm):
    assert fed().judge(loss, norm) is None


def test_too_few_steps_and_steps_without_noise():
    guard = SpikeGuard("warn", SpikeLimits())
    assert all(guard.judge(1.0, 1.0) is None for _ in range(ENOUGH - 1))
    assert guard.judge(50.0, 1.0) is None  # among the first steps nothing is known
    steady = SpikeGuard("warn", SpikeLimits())
    assert all(steady.judge(1.0, 1.0) is None for _ in range(ENOUGH))
    assert steady.judge(1.15, 1.0) is None and steady.judge(1.17, 1.0) is not None  # 8 times 2 % of the median
    zero = SpikeGuard("warn", SpikeLimits())
    assert all(zero.judge(0.0, 0.5) is None for _ in range(ENOUGH))
    assert zero.judge(0.005, 0.5) is None and zero.judge(0.02, 0.5) is not None
    assert SpikeGuard("warn", SpikeLimits(window=8)).history.values["loss"].maxlen == 8


def test_a_new_level_is_accepted_with_warn(caplog):
    guard = fed()
    found = [guard.judge(30.0, 1.0) for _ in range(LEVEL + ENOUGH + 1)]
    assert None not in found[:LEVEL] and not any(found[LEVEL:])
    assert f"{LEVEL} steps in a row" in caplog.text and guard.found == LEVEL
    assert guard.judge(300.0, 1.0) is not None


def test_a_resumed_guard_judges_alike():
    guard, other = fed(steps=30), SpikeGuard("warn", SpikeLimits())
    guard.judge(9.0, 1.0)
    check_plain(guard.state_dict())
    other.load_state_dict(guard.state_dict())
    draw = random.Random(3)
    for _ in range(60):
        values = (draw.choice([0.8, 0.9, 30.0]), draw.random())
        assert guard.judge(*values) == other.judge(*values)
    assert guard.state_dict() == other.state_dict() and guard.found > 2
    other.load_state_dict({})
    assert other.judge(1000.0, 1.0) is None and other.found == 0


class Spiky(torch.nn.Module):
    """The stand-in model whose loss is a hundred times larger for one sample."""

    def __init__(self, inner, sample):
        super().__init__()
        self.inner, self.sample = inner, sample

    def forward(self, batch):
        output = self.inner(batch)
        if self.sample in batch.sample_ids:
            output.loss_sum = output.loss_sum * 100
        return output


def spiky(tools, name, action, at=30, resume="never", **changes):
    numbers = {"max_steps": 40, "save_freq": 10, "val_freq": 100, "log_freq": 5, "init_lr": 1e-3, "warmup_steps": 0}
    torch.manual_seed(0)
    model = Spiky(tools.model(), f"s{at}.0")
    return tools.trainer(name, model=model, on_spike=action, resume=resume, **{**numbers, **changes})


def trackers_of(trainer, *names):
    return open_trackers(names, RunInfo(trainer.run_dir.path, "x", 40, trainer.progress.step, 5))


def test_warn_names_the_step_and_changes_nothing(tools, caplog):
    trainer = spiky(tools, "run", "warn")
    trainer.fit(trackers_of(trainer, "jsonl", "progress"))
    assert "step 30 is a spike: loss" in caplog.text and "samples: s30.0, s30.1" in caplog.text
    assert f"vlm replay {trainer.run_dir.path} --step 30" in caplog.text
    records = read_log(trainer.run_dir.log_file)
    (spike,) = [r for r in records if r["kind"] == "spike"]
    assert spike["step"] == 30 and spike["sample_ids"] == ["s30.0", "s30.1"] and spike["value"] > spike["limit"]
    assert [r["skipped"] for r in records if r["kind"] == "train"] == [0] * 40
    blind = spiky(tools, "blind", "warn", spike=SpikeLimits(deviations=1e9))
    blind.fit()
    assert blind.guard.found == 0
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), blind.model.parameters()))


def test_skip_leaves_weights_and_optimizer_as_they_were(tools, monkeypatch):
    trainer = spiky(tools, "run", "skip", max_steps=30)
    seen = {}
    inner = Stepper.__call__

    def watched(stepper, batches, step, lr, stop=False):
        before = [p.detach().clone() for p in trainer.model.parameters()]
        moments = [v["exp_avg"].clone() for v in trainer.optimizer.state.values()]
        stats = inner(stepper, batches, step, lr, stop)
        same = all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))
        kept = [v["exp_avg"] for v in trainer.optimizer.state.values()]
        seen[step] = stats.skipped, same, bool(moments) and all(map(torch.equal, moments, kept))
        return stats

    monkeypatch.setattr(Stepper, "__call__", watched)
    trainer.fit(trackers_of(trainer, "jsonl"))
    assert seen[30] == (True, True, True) and seen[29] == (False, False, False)
    assert trainer.guard.skipped == 1 and trainer.progress.step == 30
    assert read_log(trainer.run_dir.log_file)[-1]["skipped"] == 1


def test_a_resumed_run_skips_as_the_straight_one(tools):
    straight = spiky(tools, "straight", "skip")
    straight.fit()
    spiky(tools, "run", "skip").fit()
    for step in (30, 40):  # as if it had been killed after step 20
        folder = RunDir(tools.path / "run").folder(step)
        folder.rename(folder.with_name(f"gone{step}"))
    for link in ("last", "best"):
        (tools.path / "run" / link).unlink(missing_ok=True)
    resumed = spiky(tools, "run", "skip", resume="auto")
    assert resumed.progress.step == 20
    resumed.fit()
    (tensors, state), (tensors2, state2) = (read_checkpoint(t.run_dir.last()) for t in (straight, resumed))
    assert all(torch.equal(tensors[k], tensors2[k]) for k in tensors)
    assert state["spikes"] == state2["spikes"] and state["spikes"]["skipped"] == 1


def test_stop_ends_before_the_update_and_keeps_checkpoints(tools):
    trainer = spiky(tools, "run", "stop")
    with pytest.raises(SpikeError, match=r"step 30 is a spike: .*s30\.0.*run\.on_spike=stop") as caught:
        trainer.fit(trackers_of(trainer, "jsonl"))
    assert isinstance(caught.value, UserError) and "--step 30" in str(caught.value)
    assert trainer.run_dir.last().name == "step_00000020"
    assert trainer.run_dir.steps() == [10, 20] and trainer.progress.step == 29
    assert all(p.grad is None for p in trainer.model.parameters())


def test_too_many_skipped_in_a_row_end_the_run(tools):
    trainer = spiky(tools, "run", "skip", spike=SpikeLimits(most_skipped=3))
    trainer.model.forward = lambda batch: spoilt(trainer.model.inner(batch), trainer.progress.step >= 29)
    with pytest.raises(SpikeError, match="step 33 is a spike: .*3 steps before it were skipped"):
        trainer.fit()
    assert trainer.guard.skipped == 3


def spoilt(output, bad):
    output.loss_sum = output.loss_sum * (100 if bad else 1)
    return output


def test_a_stalled_phase_is_reported_with_samples_and_stack(caplog):
    def reports():
        return [r.getMessage() for r in caplog.records if r.getMessage().startswith("step 7, computing")]

    dog = Watchdog(0.1)
    with dog.watching(7, "computing", ["a", "b"]):
        deadline = time.monotonic() + 20
        while len(reports()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    dog.close()
    first, second = reports()[:2]
    after = [float(re.search(r"has taken ([0-9.]+)", text)[1]) for text in (first, second)]
    assert 0.1 <= after[0] < after[1] and after[1] >= 0.2
    assert "(samples a, b)" in first and "run.stall_seconds=0.1" in first
    assert "test_a_stalled_phase_is_reported" in first and "time.sleep(0.01)" in first
    assert "went on after" in caplog.text


def test_reports_double_and_a_pause_is_not_a_stall():
    dog = Watchdog(100)  # looks every 5 s
    dog._thread = None
    with dog.watching(1, "reading data"):
        times = [5 * n for n in range(1, 101) if dog.tick(5.0)]
        assert times == [100, 200, 400]
        assert not dog.tick(86_400.0)  # the machine slept for a day
    dog.close()
    assert not dog.tick(5.0)


def test_it_costs_no_thread_without_a_limit_and_ends_with_the_run(tools, monkeypatch):
    off = Watchdog(0)
    with off.watching(1, "computing"):
        assert off._thread is None
    trainer = tools.trainer(max_steps=2)
    thread = []
    inner = Stepper.__call__
    monkeypatch.setattr(Stepper, "__call__", lambda *a, **k: thread.append(trainer.watchdog._thread) or inner(*a, **k))
    trainer.fit()
    assert thread[0].name == "watchdog" and not thread[0].is_alive()


def test_other_processes_are_asked_how_far_they_are(monkeypatch, caplog):
    dog = Watchdog(0.02)
    notes = {1: '[3, 0, "step 3, reading data (samples x)"]'}

    class Others:
        rank, size = 0, 3

        def note(self, name, text):
            notes[0] = text

        def notes(self, name):
            return notes

    monkeypatch.setattr("vlm.runners.train.watch.stalls.dist.peers", Others)
    dog._watch = Watch(3, "computing", ["y"], seconds=2.0)
    with caplog.at_level(logging.WARNING):
        dog.report()
    assert "least far: process 1: step 3, reading data (samples x)" in caplog.text
    assert "no report of process 2" in caplog.text


def test_limits_are_checked():
    from vlm.config.api import load_config

    with pytest.raises(ConfigError, match="run.spike.window"):
        load_config("tiny/stage1_pretrain", ["run.spike.window=1"], check="none")


def test_the_report_shows_the_spikes_on_the_loss_curve(tools):
    from vlm.runners.train.report import write_report

    trainer = spiky(tools, "run", "skip", report=True)
    trainer.fit(trackers_of(trainer, "jsonl"))
    text = write_report(trainer.run_dir).read_text()
    assert text.count('<circle class="spike"') == 1 and '<i class="spike"></i>spikes' in text


def written_run(folder, losses, norms, **more):
    """A run folder with a log and nothing else."""
    rows = [
        {"kind": "train", "step": n, "loss": loss, "grad_norm": norm, "skipped": 0, "samples": 2, "targets": 9}
        for n, (loss, norm) in enumerate(zip(losses, norms), start=1)
    ]
    folder.mkdir()
    (folder / "config.yaml").write_text("run: {spike: {window: 30}}\nplugins: [no.such.module]\n")
    spike = {"kind": "spike", "step": 41, "value": 9.0, "sample_ids": ["<b>bad</b>", "x"]}
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, spike]))
    return folder


def test_the_worst_steps_of_a_log_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(1)
    losses = [2 * math.exp(-n / 40) + 0.05 * draw.random() for n in range(80)]
    norms = [1 + 0.1 * draw.random() for _ in range(80)]
    losses[40], norms[60], losses[70] = 9.0, 50.0, float("nan")
    folder = written_run(tmp_path / "run", losses, norms)
    assert main(["replay", "run", "--spikes", "4", "--output", "page.html", "--json", "steps.json"]) == 0
    out, text = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    values = json.loads((tmp_path / "steps.json").read_text())
    assert [s["step"] for s in values["steps"][:3]] == [71, 61, 41] and values["limits"]["window"] == 30
    assert [s["above"] for s in values["steps"]] == [True, True, True, False]
    assert values["steps"][0]["loss"] is None and values["steps"][2]["samples"] == ["<b>bad</b>", "x"]
    assert "look at one: vlm replay run --step 71" in out and "3 of those below are more than 8 deviations" in out
    assert "&lt;b&gt;bad" in text and "<b>bad" not in text and text.count('<circle class="spike"') == 5
    assert main(["replay", "run", "--step", "3"]) == 2  # a folder of somebody else runs nothing
    assert "import that module: only with --trust" in capsys.readouterr().err
    (folder / "config.yaml").write_text("run: {spike: {window: 3}}\n")
    assert main(["replay", "run", "--spikes"]) == 2 and "run.spike.window" in capsys.readouterr().err


def test_a_guard_and_the_list_agree(tmp_path):
    draw = random.Random(2)
    losses = [1 + 0.2 * draw.random() + (6 if draw.random() < 0.03 else 0) for _ in range(300)] + [40.0] * (LEVEL + 30)
    norms = [draw.lognormvariate(0, 0.3) for _ in losses]
    records = [{"step": n, "loss": a, "grad_norm": b} for n, (a, b) in enumerate(zip(losses, norms), start=1)]
    guard, limits = SpikeGuard("warn", SpikeLimits()), SpikeLimits()
    warned = [r["step"] for r in records if guard.judge(r["loss"], r["grad_norm"]) is not None]
    assert [r["step"] for *_, above, r in scored(records, limits) if above] == warned and len(warned) > LEVEL + 4


def test_a_number_far_from_the_log_is_no_rounding():
    assert Number(2.0, 2.1).is_far and not Number(2.0, 2.0000001).is_far and not Number(None, 2.0).is_far
