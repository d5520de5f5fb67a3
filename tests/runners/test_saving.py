"""Checkpoints are written beside the training: what is stored, when faults are raised, and that nothing is lost."""

import threading

import pytest
import torch

from vlm.checkpoint.run_folder import RunDir, read_checkpoint
from vlm.common.errors import NonFiniteLossError, UserError, WeightsError
from vlm.common.processes.background import Background, host_copy
from vlm.runners.train import saving


@pytest.fixture
def slow(monkeypatch):
    """Saves that go on until they are let go."""
    gate, save = threading.Event(), RunDir.save

    def waits(self, *arguments, **options):
        assert gate.wait(30)
        return save(self, *arguments, **options)

    monkeypatch.setattr(RunDir, "save", waits)
    yield gate
    gate.set()


def test_training_goes_on_while_a_checkpoint_is_written(tools, slow):
    torch.manual_seed(0)
    trainer = tools.trainer(max_steps=6, save_freq=2)
    seen = []
    step = trainer._step

    def counted(trackers, stop):
        seen.append((trainer.progress.step, RunDir(trainer.run_dir.path).steps()))
        if trainer.progress.step == 3:
            slow.set()  # two steps after the save began
        return step(trackers, stop)

    trainer._step = counted
    trainer.fit()
    assert seen[3] == (3, []) and trainer.run_dir.steps() == [2, 4, 6]
    monitored = [read_checkpoint(trainer.run_dir.folder(n)) for n in (2, 4, 6)]
    torch.manual_seed(0)
    straight = tools.trainer("straight", max_steps=6, save_freq=2)
    straight.fit()
    for number, (tensors, state) in zip((2, 4, 6), monitored):
        wanted, other = read_checkpoint(straight.run_dir.folder(number))
        assert all(torch.equal(tensors[k], wanted[k]) for k in wanted)
        moments = [s["optimizer"]["state"][0]["exp_avg"] for s in (state, other)]
        assert torch.equal(*moments) and state["progress"]["step"] == number


def test_a_save_that_fails_is_raised_by_a_later_step(tools, monkeypatch):
    trainer = tools.trainer(max_steps=100, save_freq=2)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"checkpoint of step 2 cannot be written .*No space left"):
        trainer.fit()
    assert 2 <= trainer.progress.step < 100 and trainer.run_dir.steps() == []


def test_a_run_that_fails_first_ends_the_save(tools, slow):
    trainer = tools.trainer(max_steps=6, save_freq=2)
    trainer.model.poison = "s3.0"
    threading.Timer(0.2, slow.set).start()
    with pytest.raises(NonFiniteLossError):
        trainer.fit()
    assert trainer.run_dir.steps() == [2]


def test_another_optimizer_is_one_message(tools):
    trainer = tools.trainer(max_steps=2)
    trainer.fit()
    again = tools.trainer("again", max_steps=4)
    again.run.optimizer = "adamw_8bit"
    with pytest.raises(WeightsError, match=r"run\.optimizer=adamw, this run has run\.optimizer=adamw_8bit\n  fix"):
        again.resume(trainer.run_dir.last())


@pytest.mark.parametrize("change", [{"optimizer": 3}, {"optimizer": {}}, {"progress": {"odd": 1}}, {"ranks": None}])
def test_a_state_that_is_none_is_one_message(tools, monkeypatch, change):
    trainer = tools.trainer(max_steps=1)
    trainer.fit()
    state = saving.read_state(trainer.run_dir.last() / "trainer.pt")
    monkeypatch.setattr(saving, "read_state", lambda file: state | change)
    with pytest.raises(WeightsError, match=r"trainer\.pt is not the state of a run"):
        tools.trainer("again", max_steps=2).resume(trainer.run_dir.last())


def test_background_raises_once_and_waits():
    work = Background("test")
    work.wait(), work.check(), work.close()
    gate = threading.Event()
    work.start(lambda: gate.wait(5) and None)
    assert work.running
    work.check()
    gate.set()
    work.wait()
    work.start(lambda: (_ for _ in ()).throw(ValueError("x")))
    with pytest.raises(ValueError):
        work.wait()
    work.wait()
    work.start(lambda: (_ for _ in ()).throw(ValueError("y")))
    assert str(work.fault()) == "y" and work.fault() is None
    work.close()


def test_copies_do_not_change():
    tensor = torch.zeros(2)
    copied = host_copy({"a": [tensor, (1, tensor)], "b": None})
    tensor += 1
    assert copied["a"][0].sum() == 0 and copied["a"][1][1].sum() == 0 and copied["b"] is None
