"""The loop around the step: counting, validation, checkpoints, early stop, resume, signals."""

import contextlib
import json
import logging
import math
import os
import signal

import pytest
import torch

from vlm.checkpoint.run_folder import read_checkpoint
from vlm.common.errors import NonFiniteLossError, UserError, WeightsError
from vlm.runners.train.trackers import JsonlTracker, RunInfo, read_log


class Losses:
    """A validator that gives the listed losses in turn."""

    def __init__(self, *losses):
        self.losses = list(losses)

    def __call__(self):
        return {"loss": self.losses.pop(0), "tokens": 1.0}


class Collect:
    """A tracker that keeps what it gets; ``on_step`` is called with each record."""

    def __init__(self, on_step=None):
        self.records, self.closed, self.on_step = [], False, on_step

    def log(self, record):
        self.records.append(record)
        if self.on_step:
            self.on_step(record)

    def close(self):
        self.closed = True


def test_straight_run_logs_every_step_and_saves_on_time(tools):
    seen = Collect()
    trainer = tools.trainer(max_steps=5, save_freq=2, accum_grad_iters=3)
    result = trainer.fit([seen])
    assert (result.status, result.step, result.exit_code, result.best_loss) == ("finished", 5, 0, None)
    assert [r["step"] for r in seen.records] == [1, 2, 3, 4, 5] and seen.closed
    assert trainer.run_dir.steps() == [2, 4, 5]
    assert all(math.isfinite(v) for r in seen.records for k, v in r.items() if k != "kind")
    assert {r["samples"] for r in seen.records} == {6}
    assert trainer.loader.position == 15
    assert seen.records[0]["lr"] == 0.0 and seen.records[2]["lr"] == pytest.approx(0.05)


def test_epochs_decide_when_no_frequency_is_given(tools):
    trainer = tools.trainer(max_steps=None, max_epoch=2, epoch_steps=3, save_freq=0, val_freq=0, validator=Losses(2, 1))
    result = trainer.fit()
    assert result.step == 6 and trainer.run_dir.steps() == [3, 6] and result.best_loss == 1


def test_training_lowers_the_loss(tools):
    seen = Collect()
    tools.trainer(max_steps=60, save_freq=100).fit([seen])
    losses = [r["loss"] for r in seen.records]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("dropout, accum", [(0.3, 1), (0.3, 2)])
def test_resumed_run_equals_straight_run_bit_for_bit(tools, dropout, accum):
    def run(name, steps_to_raise=None, **more):
        def fail(record):
            if record["step"] == steps_to_raise:
                raise KeyboardInterrupt

        torch.manual_seed(7)
        seen = Collect(fail)
        trainer = tools.trainer(name, model=tools.model(dropout), max_steps=9, accum_grad_iters=accum, **more)
        with contextlib.suppress(KeyboardInterrupt):
            trainer.fit([seen])
        return trainer, [r["loss"] for r in seen.records if r["kind"] == "train"]

    straight, losses = run("straight")
    _, first = run("killed", steps_to_raise=5)
    torch.manual_seed(99)
    resumed, second = run("killed", resume="auto")
    assert first == losses[:5] and second == losses[4:]
    assert torch.equal(straight.model.proj.weight, resumed.model.proj.weight)
    assert torch.equal(straight.model.proj.bias, resumed.model.proj.bias)
    old, new = straight.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    assert all(torch.equal(old[k][n], new[k][n]) for k in old for n in old[k])


def test_best_checkpoint_and_early_stop_survive_resume(tools):
    losses = [5.0, 3.0, 4.0, 3.5, 9.0]
    trainer = tools.trainer(max_steps=20, val_freq=1, save_freq=100, early_stop=2, validator=Losses(*losses))
    result = trainer.fit()
    assert (result.status, result.step, result.best_loss, result.exit_code) == ("early_stop", 4, 3.0, 0)
    assert trainer.run_dir.best().name == "step_00000002"
    assert trainer.run_dir.last().name == "step_00000004"
    provenance = json.loads((trainer.run_dir.best() / "provenance.json").read_text())
    assert provenance["metrics"]["valid_loss"] == 3.0 and provenance["trained"] == ["proj.weight", "proj.bias"]
    again = tools.trainer(max_steps=20, resume="auto", early_stop=3, val_freq=1, validator=Losses(3.2))
    assert again.progress.bad_validations == 2 and again.fit().step == 5


def test_only_trainable_tensors_are_stored(tools):
    trainer = tools.trainer(max_steps=2)
    trainer.fit()
    tensors, state = read_checkpoint(trainer.run_dir.last())
    assert sorted(tensors) == ["proj.bias", "proj.weight"]
    assert state["names"] == ["proj.weight", "proj.bias"] and state["progress"]["step"] == 2


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_ends_with_its_code(tools, number, code):
    before = signal.getsignal(number)
    seen = Collect(lambda r: os.kill(os.getpid(), number) if r["step"] == 3 else None)
    trainer = tools.trainer(max_steps=50, save_freq=100)
    result = trainer.fit([seen])
    assert (result.status, result.step, result.exit_code) == ("stopped", 3, code)
    assert trainer.run_dir.steps() == [3] and seen.closed
    assert signal.getsignal(number) is before


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(tools):
    model = tools.model()
    model.poison = "s5.0"
    trainer = tools.trainer(model=model, max_steps=20, save_freq=2)
    seen = Collect()
    with pytest.raises(NonFiniteLossError, match=r"step 5: .*s5\.0"):
        trainer.fit([seen])
    assert trainer.run_dir.steps() == [2, 4] and seen.closed and len(seen.records) == 4


def test_resume_with_other_trainables_is_refused(tools):
    tools.trainer(max_steps=2).fit()
    model = tools.model()
    model.proj.bias.requires_grad_(False)
    with pytest.raises(WeightsError, match=r"unexpected: proj\.bias"):
        tools.trainer(model=model, resume="auto")


def test_another_number_of_processes_goes_on_with_new_random_states(tools, monkeypatch, caplog):
    trainer = tools.trainer(max_steps=2)
    trainer.fit()
    monkeypatch.setattr("vlm.common.dist.world_size", lambda: 4)
    monkeypatch.setattr(logging.getLogger("vlm"), "propagate", True)
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        trainer.resume(trainer.run_dir.last())
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1] and trainer.loader.position == 2
    assert "resumes with 4 processes instead of 1" in caplog.text
    torch.manual_seed(1)
    assert torch.rand(3).tolist() != draws[0]


def test_retention_during_a_run(tools):
    trainer = tools.trainer(max_steps=12, save_freq=2, keep_last=2, keep_every=4)
    trainer.fit()
    assert trainer.run_dir.steps() == [4, 8, 10, 12]


def test_jsonl_after_resume_has_each_step_once(tools):
    def info(start):
        return RunInfo(tools.path / "run", "run", 6, start_step=start)

    trainer = tools.trainer(max_steps=6, save_freq=2)
    tracker = JsonlTracker(info(0))
    stop = Collect(lambda r: (_ for _ in ()).throw(KeyboardInterrupt) if r["step"] == 5 else None)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit([tracker, stop])
    with (tools.path / "run" / "log.jsonl").open("a") as out:
        out.write('{"kind": "train", "st')
    again = tools.trainer(max_steps=6, resume="auto")
    again.fit([JsonlTracker(info(again.progress.step))])
    assert [r["step"] for r in read_log(tools.path / "run" / "log.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_unknown_schedule_is_reported_before_training(tools):
    with pytest.raises(UserError, match="unknown scheduler 'cosin'"):
        tools.trainer(lr_sched="cosin")


def test_state_holds_one_entry_per_process(tools, monkeypatch):
    monkeypatch.setattr("vlm.common.dist.gather_objects", lambda value: [value, value])
    trainer = tools.trainer(max_steps=2)
    trainer.fit()
    assert len(read_checkpoint(trainer.run_dir.last())[1]["ranks"]) == 2
