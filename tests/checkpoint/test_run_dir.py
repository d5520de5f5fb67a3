"""Run folders: layout, atomicity, retention, links, refusal to mix runs."""

import json
import os

import pytest
import torch
import yaml

from vlm.checkpoint import run_folder as run_dir_module
from vlm.checkpoint.provenance import make_provenance, read_provenance
from vlm.checkpoint.run_folder import RunDir, find_checkpoint, read_checkpoint
from vlm.common.errors import UserError, WeightsError


def save(run: RunDir, step: int, value: float = 0.0, **more):
    provenance = make_provenance(step=step, config={"a": 1}, metrics={"loss": value})
    return run.save(
        step, {"w": torch.full((2, 2), value)}, {"step": step, "x": [1, (2.0, None)]}, provenance, "a: 1\n", **more
    )


@pytest.fixture
def run(tmp_path):
    folder = RunDir(tmp_path / "run")
    folder.prepare()
    return folder


def test_layout_and_reading_back(run):
    folder = save(run, 5, 1.5, best=True)
    assert sorted(p.name for p in folder.iterdir()) == [
        "checksums.json",
        "config.yaml",
        "model.safetensors",
        "provenance.json",
        "trainer.pt",
    ]
    tensors, state = read_checkpoint(folder)
    assert torch.equal(tensors["w"], torch.full((2, 2), 1.5))
    assert state == {"step": 5, "x": [1, (2.0, None)]}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["step"] == 5 and provenance["metrics"] == {"loss": 1.5} and "torch" in provenance["versions"]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {"a": 1}


def test_links_are_relative_so_a_run_can_be_moved(run, tmp_path):
    save(run, 1, best=True)
    save(run, 2)
    assert os.readlink(run.path / "last") == "checkpoints/step_00000002"
    assert os.readlink(run.path / "best") == "checkpoints/step_00000001"
    run.path.rename(tmp_path / "moved")
    assert find_checkpoint(tmp_path / "moved" / "best").name == "step_00000001"


@pytest.mark.parametrize("given", ["", "last", "checkpoints/step_00000002", "last/model.safetensors"])
def test_find_checkpoint_takes_every_way_to_name_it(run, given):
    save(run, 2)
    assert find_checkpoint(run.path / given) == run.folder(2).resolve()


def test_find_checkpoint_on_nothing(tmp_path):
    with pytest.raises(WeightsError, match="no checkpoint there"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("fails_in", ["save_file", "torch_save", "provenance", "replace"])
def test_a_crash_while_saving_leaves_the_last_one_intact(run, monkeypatch, fails_in):
    save(run, 1, 1.0)

    def boom(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if fails_in == "save_file":
            patch.setattr("safetensors.torch.save_file", boom)
        elif fails_in == "torch_save":
            patch.setattr(torch, "save", boom)
        elif fails_in == "provenance":
            patch.setattr(run_dir_module, "replace_text", boom)
        else:
            patch.setattr(os, "replace", boom)
        with pytest.raises(KeyboardInterrupt):
            save(run, 2, 2.0)
    assert run.steps() == [1] and run.last() == run.folder(1)
    again = RunDir(run.path)
    assert again.prepare(resume="auto") == run.folder(1)
    assert read_checkpoint(again.last())[1]["step"] == 1
    assert [p.name for p in run.checkpoints.iterdir()] == ["step_00000001"]


def test_a_crash_while_replacing_the_same_step_is_undone(run, monkeypatch):
    save(run, 1, 1.0)
    calls = []
    original = os.replace

    def second_fails(source, target):
        calls.append(source)
        if ".step_00000001." in str(source):
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", second_fails)
        with pytest.raises(KeyboardInterrupt):
            save(run, 1, 9.0)
    again = RunDir(run.path)
    assert again.prepare(resume="auto") == run.folder(1)
    assert read_checkpoint(run.folder(1))[0]["w"][0, 0] == 1.0


def test_retention_keeps_newest_every_nth_and_best(run):
    for step in range(1, 11):
        save(run, step, best=step == 3)
        run.prune(keep_last=2, keep_every=5)
    assert run.steps() == [3, 5, 9, 10]
    assert run.prune(keep_last=0) == []


def test_another_run_is_not_overwritten_by_accident(run):
    save(run, 4)
    run.write_config("a: 1\n")
    run.log_file.write_text("{}\n")
    with pytest.raises(UserError, match="already holds a run") as error:
        run.prepare()
    assert "run.resume=auto" in str(error.value) and "run.overwrite=true" in str(error.value)
    assert run.prepare(resume="auto") == run.folder(4)
    assert run.prepare(overwrite=True) is None
    assert run.steps() == [] and not run.log_file.exists() and run.last() is None


def test_resume_auto_starts_anew_in_an_empty_folder(tmp_path):
    assert RunDir(tmp_path / "new").prepare(resume="auto") is None


def test_state_that_could_not_be_read_back_is_refused_at_save(run):
    with pytest.raises(TypeError, match=r"state\.loader\.rng is a Random"):
        import random

        run.save(1, {}, {"loader": {"rng": random.Random(0)}}, {}, "")
    assert run.steps() == []


def test_damaged_files_are_user_errors(run):
    folder = save(run, 1)
    (folder / "trainer.pt").write_bytes(b"no state")
    with pytest.raises(WeightsError, match=r"trainer\.pt"):
        read_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        read_checkpoint(folder)


def test_the_record_of_version_0_1_is_read(run) -> None:
    save(run, 1, 1.0)
    folder = run.last()
    record = read_provenance(folder)
    (folder / "provenance.json").rename(folder / "passport.json")
    assert read_provenance(folder) == record and record["step"] == 1 and read_provenance(None) == {}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_called_best_stays(run, kind, caplog, tmp_path):
    best = run.path / "best"
    best.write_text("mine") if kind == "file" else best.symlink_to(tmp_path)
    save(run, 1, best=True)
    assert "stays as it is" in caplog.text and run.best() is None
    assert best.read_text() == "mine" if kind == "file" else os.readlink(best) == str(tmp_path)


def test_a_checkpoint_that_was_being_replaced_is_found_by_readers(run):
    """Killed between the two renames of a checkpoint of the same step, the only one."""
    save(run, 1, 1.0)
    os.replace(run.folder(1), run.checkpoints / ".step_00000001.old.999999999")
    assert find_checkpoint(run.path).name == RunDir(run.path).last().name == ".step_00000001.old.999999999"
    assert RunDir(run.path).prepare(resume="auto") == run.folder(1)


def test_what_another_living_process_writes_is_left_alone(run):
    work = run.checkpoints / f".step_00000001.{os.getppid()}"
    work.mkdir()
    run.prepare(resume="auto")
    assert work.exists()


def test_a_checkpoint_of_an_abandoned_continuation_comes_last(run):
    """Resumed from step 1 and saved step 2 anew: step 3 belongs to another past."""
    for step in (1, 3, 2):
        save(run, step)
    for step, then in ((2, 1), (1, 3)):
        (run.folder(step) / "trainer.pt").write_bytes(b"x")
        assert RunDir(run.path).prepare(resume="auto") == run.folder(then)


def test_a_copy_of_another_step_is_damaged(run):
    import shutil

    save(run, 1), save(run, 2)
    shutil.rmtree(run.folder(2))
    shutil.copytree(run.folder(1), run.folder(2))
    assert RunDir(run.path).prepare(resume="auto") == run.folder(1)


@pytest.mark.parametrize("where", ["weights", "state"])
def test_files_that_cannot_grow_are_one_message_and_leave_nothing(run, where):
    import resource

    save(run, 1)
    size = {"weights": 1000, "state": 100_000}[where]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"w": torch.zeros(10_000 if where == "weights" else 10)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError, match=r"checkpoint of step 2 cannot be written.*step_00000001\n  fix"):
            run.save(2, big, {"x": torch.zeros(100_000)}, {}, "a: 1\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_00000001"]
