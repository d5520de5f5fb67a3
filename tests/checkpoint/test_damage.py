"""Damaged checkpoints: found by checksums, left out with a warning, named when asked for."""

import json
import os
import shutil

import pytest
import torch

from vlm.checkpoint.checkpoint_files import TO_LOAD, TO_RESUME, damage
from vlm.checkpoint.provenance import make_provenance
from vlm.checkpoint.run_folder import RunDir, find_checkpoint, read_checkpoint
from vlm.common.errors import UserError, WeightsError


@pytest.fixture
def run(tmp_path):
    folder = RunDir(tmp_path / "run")
    folder.prepare()
    for step in (1, 2, 3):
        provenance = make_provenance(step=step, config={"a": 1})
        tensors, state = {"w": torch.full((64,), float(step))}, {"progress": {"step": step}, "x": torch.arange(99)}
        folder.save(step, tensors, state, provenance, "model: {}\n")
    return folder


def flip(name, place):
    def do(folder):
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)

    return do


def cut(name, keep):
    def do(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return do


def put(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def gone(name):
    return lambda folder: (folder / name).unlink()


def swapped(name):
    """The file of the checkpoint before: sound, of the right size, and wrong."""
    return lambda folder: shutil.copyfile(folder.with_name("step_00000002") / name, folder / name)


def whole_other(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step_00000002"), folder)


def looped(name):
    def do(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(folder / name)

    return do


def as_folder(name):
    def do(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return do


def as_pipe(name):
    def do(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return do


def link_loop(folder):
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def manifest(**changes):
    def do(folder):
        content = json.loads((folder / "manifest.json").read_text()) | changes
        (folder / "manifest.json").write_text(json.dumps(content))

    return do


DAMAGES = {
    "weights: first bit": flip("model.safetensors", 0),
    "weights: a bit of the header": flip("model.safetensors", 20),
    "weights: a bit of a number": flip("model.safetensors", -7),
    "weights: half": cut("model.safetensors", 0.5),
    "weights: one byte short": cut("model.safetensors", 0.999),
    "weights: empty": put("model.safetensors", b""),
    "weights: HTML": put("model.safetensors", b"<html>not found</html>"),
    "weights: missing": gone("model.safetensors"),
    "weights: of another step": swapped("model.safetensors"),
    "weights: link loop": looped("model.safetensors"),
    "weights: a folder": as_folder("model.safetensors"),
    "weights: a pipe": as_pipe("model.safetensors"),
    "all: missing": lambda folder: [p.unlink() for p in folder.iterdir()],
    "all: of another step": whole_other,
    "all: link loop": link_loop,
    "manifest: empty": put("manifest.json", b""),
    "manifest: not JSON": put("manifest.json", b"{'step': 3"),
    "manifest: a list": put("manifest.json", b"[]"),
    "manifest: not UTF-8": put("manifest.json", b"\xff\xfe{}"),
    "manifest: deep": put("manifest.json", b"[" * 100_000),
    "manifest: wrong step": manifest(step=7),
    "manifest: no files": manifest(files={}),
    "manifest: odd files": manifest(files={"model.safetensors": 3}),
}
STATE_DAMAGES = {
    "state: a bit": flip("trainer.pt", 700),
    "state: half": cut("trainer.pt", 0.5),
    "state: empty": put("trainer.pt", b""),
    "state: missing": gone("trainer.pt"),
    "state: of another step": swapped("trainer.pt"),
    "record: missing": gone("provenance.json"),
    "record: not JSON": put("provenance.json", b"{"),
    "record: a list": put("provenance.json", b"[1]"),
    "record: not UTF-8": put("provenance.json", b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("name", [*DAMAGES, *STATE_DAMAGES])
def test_a_damaged_last_checkpoint_gives_way_to_the_newest_whole_one(run, name, caplog):
    (DAMAGES | STATE_DAMAGES)[name](run.folder(3))
    assert RunDir(run.path).prepare(resume="auto") == run.folder(2)
    found = name in ("all: missing", "all: link loop") or "step_00000003 is damaged" in caplog.text
    assert found and read_checkpoint(run.folder(2))[1]["progress"]["step"] == 2
    whole = run.folder(3 if name in STATE_DAMAGES else 2)  # answering needs no state
    assert find_checkpoint(run.path).name == find_checkpoint(run.path / "last").name == whole.name


@pytest.mark.parametrize("name", ["weights: a bit of a number", "state: a bit", "weights: half", "manifest: empty"])
def test_a_damaged_checkpoint_that_is_asked_for_is_an_error(run, name):
    (DAMAGES | STATE_DAMAGES)[name](run.folder(3))
    with pytest.raises(
        WeightsError, match=r"step_00000003: damaged \([\s\S]*newest whole one of this run is .*step_00000002"
    ):
        RunDir(run.path.with_name("other")).prepare(resume=str(run.folder(3)))


def test_without_any_whole_checkpoint_nothing_is_started_over(run):
    for step in run.steps():
        cut("trainer.pt", 0.3)(run.folder(step))
    with pytest.raises(WeightsError, match=r"no checkpoint is whole \(step_00000003: trainer.pt has"):
        RunDir(run.path).prepare(resume="auto")
    with pytest.raises(UserError, match="already holds a run"):
        RunDir(run.path).prepare()
    assert run.steps() == [1, 2, 3]


def test_texts_may_be_edited(run):
    folder = run.folder(3)
    (folder / "config.yaml").write_text("model: {llm: {path: /elsewhere}}\n")
    assert damage(folder, TO_LOAD) == "" and damage(folder, TO_RESUME) == ""
    (folder / "config.yaml").write_text("model: [")
    assert damage(folder, TO_LOAD) == "config.yaml is damaged" and find_checkpoint(run.path) == run.folder(2).resolve()


@pytest.mark.parametrize("name", ["weights: half", "weights: empty", "weights: of another step", "weights: missing"])
def test_older_checkpoints_are_checked_without_checksums(run, name):
    for step in run.steps():
        (run.folder(step) / "manifest.json").unlink()
    assert RunDir(run.path).prepare(resume="auto") == run.folder(3)
    DAMAGES[name](run.folder(3))
    assert RunDir(run.path).prepare(resume="auto") == run.folder(2)
    STATE_DAMAGES["state: a bit"](run.folder(2))
    assert RunDir(run.path).prepare(resume="auto") == run.folder(1)


def test_an_unreadable_file_is_damage(run, monkeypatch):
    from vlm.checkpoint import checkpoint_files

    def refuse(file, *facts):
        raise PermissionError(13, "Permission denied", file)

    monkeypatch.setattr(checkpoint_files, "_checksum", refuse)
    assert damage(run.folder(3), TO_RESUME) == "model.safetensors: Permission denied"


def test_a_checkpoint_of_an_abandoned_continuation_comes_last(run):
    """Resumed from step 1, saved step 2 anew: step 3 belongs to another past."""
    run._link("last", run.folder(2))
    flip("model.safetensors", -1)(run.folder(2))
    assert RunDir(run.path).prepare(resume="auto") == run.folder(1)
    flip("model.safetensors", -1)(run.folder(1))
    assert RunDir(run.path).prepare(resume="auto") == run.folder(3)
