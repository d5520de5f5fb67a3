"""Run folders: layout, atomicity, retention, links, refusal to mix runs."""

import errno
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
        "config.yaml",
        "manifest.json",
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


FOREIGN = {
    "config.yaml": "mine: 1\n",
    "log.jsonl": "not ours\n",
    "report.html": "<p>mine",
    "tensorboard/events.out.tfevents.1.host.2.0": "events",
    "checkpoints/step_00000009/model.bin": "weights",
    "checkpoints/best.ckpt": "weights",
    "notes.txt": "keep me",
}


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("resume", ["never", "auto"])
@pytest.mark.parametrize("names", [[*FOREIGN], *([n] for n in FOREIGN)], ids=lambda n: "+".join(n)[:30])
def test_what_no_run_wrote_is_never_deleted(tmp_path, names, resume, overwrite):
    for name in names:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(FOREIGN[name])
    before, run = contents(tmp_path / "run"), RunDir(tmp_path / "run")
    harmless = names[0] in ("notes.txt", "checkpoints/best.ckpt") or names[0].startswith("tensorboard")
    if len(names) == 1 and harmless:
        assert run.prepare(resume, overwrite) is None
        save(run, 1, best=True)
        run.write_config("a: 1\n")
        assert RunDir(run.path).prepare(overwrite=True) is None
        assert before.items() <= contents(run.path).items() and run.steps() == []
        return
    with pytest.raises(UserError, match=r"not written by this library[\s\S]*another output folder"):
        run.prepare(resume, overwrite)
    assert contents(run.path) == before


def test_overwriting_deletes_our_own_files_and_leaves_the_rest(run):
    save(run, 1, best=True)
    save(run, 2)
    run.write_config("a: 1\n")
    run.log_file.write_text("{}\n")
    run.tensorboard.mkdir()
    (run.tensorboard / "events.out.tfevents.1").write_text("ours")
    run.note_files()
    (run.tensorboard / "events.out.tfevents.9").write_text("theirs")
    (run.folder(1) / "notes.txt").write_text("theirs")
    (run.checkpoints / "step_x.tmp").mkdir()
    (run.checkpoints / ".DS_Store").write_text("theirs")
    assert RunDir(run.path).prepare(overwrite=True) is None
    left = {"tensorboard/events.out.tfevents.9", "checkpoints/step_00000001/notes.txt", "checkpoints/.DS_Store"}
    assert set(contents(run.path)) == {*left, "vlm_files.json"} and not (run.path / "last").is_symlink()


def test_a_run_from_before_the_list_is_taken_over(run):
    folder = save(run, 3, best=True)
    run.write_config("a: 1\n")
    run.log_file.write_text("{}\n")
    run.tensorboard.mkdir()
    (run.tensorboard / "events.out.tfevents.1").write_text("ours")
    (folder / "manifest.json").unlink()
    (run.path / "vlm_files.json").unlink()
    again = RunDir(run.path)
    with pytest.raises(UserError, match="already holds a run"):
        again.prepare()
    assert again.prepare(resume="auto") == folder
    assert RunDir(run.path).prepare(overwrite=True) is None
    assert set(contents(run.path)) == {"vlm_files.json"}


def test_a_list_cannot_lead_out_of_the_folder(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "report.html").write_text("mine")
    run = RunDir(tmp_path / "run")
    run.prepare()
    listed = [
        "../outside/report.html",
        str(outside / "report.html"),
        "tensorboard/events.out.tfevents.1",
        "report.html",
    ]
    (run.path / "vlm_files.json").write_text(json.dumps({"files": listed}))
    (outside / "events.out.tfevents.1").write_text("mine")
    run.tensorboard.symlink_to(outside)
    run.report.symlink_to(outside / "report.html")
    RunDir(run.path).prepare(overwrite=True)
    assert sorted(p.name for p in outside.iterdir()) == ["events.out.tfevents.1", "report.html"]


@pytest.mark.parametrize(
    "given", ["", ".", "..", "/", "~", "~/..", "inner/..", "PACKAGE", "PACKAGE/cli/x", "PACKAGE/..", "FILE"]
)
def test_folders_that_no_run_may_use(given, tmp_path, monkeypatch):
    import vlm

    (tmp_path / "work").mkdir()
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "homes" / "me"))
    given = given.replace("PACKAGE", os.path.dirname(vlm.__file__)).replace("FILE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"run\.output_dir[\s\S]*run\.output_dir=output/my_run"):
        RunDir(given).check()


def test_ordinary_output_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("output", "output/a b/ü", str(tmp_path / "other"), "../beside"):
        assert RunDir(given).check() is None


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_something_else_called_last_stays_and_checkpoints_go_by_number(run, kind, caplog, tmp_path):
    last = run.path / "last"
    if kind == "folder":
        last.mkdir()
    elif kind == "file":
        last.write_text("mine")
    else:
        last.symlink_to(tmp_path)
    save(run, 1)
    save(run, 2)
    assert caplog.text.count("is left as it is") == 1
    assert run.last() == run.folder(2) == RunDir(run.path).prepare(resume="auto")
    assert last.is_dir() if kind != "file" else last.read_text() == "mine"


def test_strange_names_beside_the_checkpoints_do_not_matter(run):
    save(run, 1)
    for name in (
        ".DS_Store",
        "step_",
        "step_x.tmp",
        "step_2",
        "step_٣",
        "step_-0000001",
        "last",
        ".gone_x",
        "a\nb",
        "step_00000002",
    ):
        (run.checkpoints / name).write_text("x")
    for name in ("step_00000003", ".step_00000004.5.6", "ü\t'\""):
        (run.checkpoints / name).mkdir()
    assert run.steps() == [1] and run.last() == run.folder(1)
    assert RunDir(run.path).prepare(resume="auto") == run.folder(1)
    save(run, 5)
    run.prune(keep_last=1)
    assert run.steps() == [5] and (run.checkpoints / ".DS_Store").exists()


def test_a_checkpoint_that_was_being_replaced_is_found_by_readers(run):
    """Killed between the two renames of a checkpoint of the same step."""
    save(run, 1, 1.0)
    os.replace(run.folder(1), run.checkpoints / ".step_00000001.old.999999999")
    assert find_checkpoint(run.path).name == RunDir(run.path).last().name == ".step_00000001.old.999999999"
    assert RunDir(run.path).prepare(resume="auto") == run.folder(1)


def test_what_another_living_process_writes_is_left_alone(run):
    work = run.checkpoints / f".step_00000001.{os.getppid()}"
    work.mkdir()
    run.prepare(resume="auto")
    assert work.exists()


@pytest.mark.parametrize("where", ["weights", "state"])
def test_a_full_disk_is_one_message_that_names_the_last_checkpoint(run, where):
    import resource

    save(run, 1)
    size = {"weights": 1000, "state": 100_000}[where]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"w": torch.zeros(10_000 if where == "weights" else 10)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(
            UserError,
            match=r"cannot be written \(the checkpoint of step 2\): (File too large|not every).*step_00000001",
        ):
            run.save(2, big, {"x": torch.zeros(100_000)}, {}, "a: 1\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_00000001"]


def test_a_deleted_folder_is_one_message(run):
    import shutil

    save(run, 1)
    shutil.rmtree(run.path)
    with pytest.raises(
        UserError, match=r"step 2\): the folder was deleted during the run; there is no whole checkpoint"
    ):
        save(run, 2)
    assert not run.path.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_faults_of_files_of_the_run_are_one_message(run, code):
    save(run, 1)
    with (
        pytest.raises(UserError, match=r"cannot be written: .*the last whole checkpoint is .*step_00000001"),
        run.faults(),
    ):
        raise OSError(code, os.strerror(code), str(run.log_file))
    with pytest.raises(OSError), run.faults():
        raise OSError(errno.EACCES, "elsewhere", "/data/x.jpg")
