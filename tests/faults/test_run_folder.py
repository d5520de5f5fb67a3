"""Run folders that are damaged, shared with other programs, full or gone: nothing of others is deleted, and a run goes
on from the newest checkpoint that is as it was written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlm.checkpoint.run_files import CHECKSUMS, MANIFEST, STATE, WEIGHTS, damage
from vlm.checkpoint.run_folder import RunDir, find_checkpoint, read_checkpoint
from vlm.common.errors import UserError, WeightsError


def save(run: RunDir, step: int) -> Path:
    state = {"step": step, "big": torch.full((64,), float(step))}
    return run.save(step, {"w": torch.full((32, 32), float(step))}, state, {"step": step}, "a: 1\n")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with checkpoints of steps 1 and 2."""
    folder = RunDir(tmp_path / "run")
    folder.prepare()
    folder.write_config("a: 1\n")
    save(folder, 1), save(folder, 2)
    return folder


def flip(file: Path, at: float = 0.9) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 1
    file.write_bytes(data)


def cut(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second), other.write_bytes(first)


def checksums(folder: Path, change: Callable[[dict], object]) -> None:
    entry = json.loads((folder / CHECKSUMS).read_text())
    change(entry)
    (folder / CHECKSUMS).write_text(json.dumps(entry))


def linked(file: Path, target: str) -> None:
    file.unlink()
    file.symlink_to(target)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights: a bit of the data": lambda f: flip(f / WEIGHTS),
    "weights: a bit of the header": lambda f: flip(f / WEIGHTS, 0.01),
    "weights: the last bit": lambda f: flip(f / WEIGHTS, 0.99999),
    "weights: half": lambda f: cut(f / WEIGHTS, 0.5),
    "weights: empty": lambda f: cut(f / WEIGHTS, 0),
    "weights: longer": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"x"),
    "weights: zeros": lambda f: (f / WEIGHTS).write_bytes(bytes((f / WEIGHTS).stat().st_size)),
    "weights: missing": lambda f: (f / WEIGHTS).unlink(),
    "weights: a folder": lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
    "weights: a loop": lambda f: linked(f / WEIGHTS, WEIGHTS),
    "weights: a link to nothing": lambda f: linked(f / WEIGHTS, "gone"),
    "weights: of the step before": lambda f: shutil.copy(f.parent / "step_00000001" / WEIGHTS, f / WEIGHTS),
    "state: a bit": lambda f: flip(f / STATE, 0.5),
    "state: half": lambda f: cut(f / STATE, 0.5),
    "state: empty": lambda f: cut(f / STATE, 0),
    "state: missing": lambda f: (f / STATE).unlink(),
    "state: text": lambda f: (f / STATE).write_text("no state"),
    "state: of the step before": lambda f: shutil.copy(f.parent / "step_00000001" / STATE, f / STATE),
    "weights and state swapped": lambda f: swap(f / WEIGHTS, f / STATE),
    "config: a bit": lambda f: flip(f / "config.yaml"),
    "provenance: missing": lambda f: (f / "provenance.json").unlink(),
    "checksums: not JSON": lambda f: (f / CHECKSUMS).write_text("{"),
    "checksums: a list": lambda f: (f / CHECKSUMS).write_text("[1]"),
    "checksums: without the state": lambda f: checksums(f, lambda c: c.pop(STATE)),
    "checksums: of another size": lambda f: checksums(f, lambda c: c[WEIGHTS].update(bytes=5)),
    "checksums: a file elsewhere": lambda f: checksums(f, lambda c: c.update({"../../config.yaml": c[STATE]})),
    "everything: empty": lambda f: [cut(file, 0) for file in f.iterdir()],
    "everything: gone": lambda f: [file.unlink() for file in f.iterdir()],
    "the folder: gone": lambda f: shutil.rmtree(f),
    "the folder: a file": lambda f: (shutil.rmtree(f), f.write_text("x")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_newest_good_one(
    run: RunDir, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[name](run.folder(2))
    again = RunDir(run.path)
    assert again.prepare(resume="auto") == run.folder(1)
    assert read_checkpoint(run.folder(1))[1]["step"] == 1
    assert find_checkpoint(run.path) == find_checkpoint(run.path / "last") == run.folder(1).resolve()
    if (run.folder(2) / WEIGHTS).is_file():
        assert "step_00000002 is damaged" in caplog.text and "going back to step_00000001" in caplog.text
        with pytest.raises(WeightsError, match=r"step_00000002: damaged .*\n  fix: use another checkpoint"):
            find_checkpoint(run.folder(2))
    save(again, 3)
    assert again.last() == again.last_good() == run.folder(3)


def test_all_damaged_is_one_message_that_names_them(run: RunDir) -> None:
    for step in (1, 2):
        flip(run.folder(step) / WEIGHTS)
    with pytest.raises(WeightsError, match=r"every checkpoint is damaged:\n  - step_00000002: .*\n  - step_00000001"):
        RunDir(run.path).prepare(resume="auto")


def test_checkpoints_of_earlier_versions_are_read(run: RunDir) -> None:
    for step in (1, 2):
        (run.folder(step) / CHECKSUMS).unlink()
    (run.path / MANIFEST).unlink()
    assert RunDir(run.path).check(resume="auto") == run.folder(2)
    cut(run.folder(2) / WEIGHTS, 0.5)
    assert RunDir(run.path).check(resume="auto") == run.folder(1) and "damaged" in damage(run.folder(2))
    with pytest.raises(UserError, match=r"already holds a run\n  fix: .* delete the folder yourself"):
        RunDir(run.path).check(overwrite=True)


FOREIGN = (
    "config.yaml",
    "log.jsonl",
    "report.html",
    "tensorboard/events.out.tfevents.1",
    "checkpoints/model.ckpt",
    "last",
)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_another_program_are_never_deleted(tmp_path: Path, name: str, overwrite: bool) -> None:
    file = tmp_path / "shared" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    run = RunDir(tmp_path / "shared")
    with pytest.raises(UserError, match=f"holds {name.split('/')[0]}, which no run of vlm wrote; nothing was changed"):
        run.prepare(overwrite=overwrite)
    assert file.read_text() == "mine" and [f for f in (tmp_path / "shared").rglob("*") if f.is_file()] == [file]


def test_overwriting_a_run_keeps_what_others_put_into_it(run: RunDir) -> None:
    kept = [
        run.path / "notes.txt", run.checkpoints / ".DS_Store", run.checkpoints / "mine" / "a.bin",
        run.folder(1) / "notes.txt", run.path / "tensorboard" / "other.txt",
    ]  # fmt: skip
    for file in kept:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    again = RunDir(run.path)
    again.prepare(overwrite=True)
    assert [file for file in kept if file.read_text() != "mine"] == [] and again.steps() == []
    assert not (run.path / "last").exists() and not run.folder(2).exists() and not run.config_file.exists()
    save(again, 1)
    assert again.steps() == [1] and (run.folder(1) / "notes.txt").read_text() == "mine"
    again.prune(keep_last=1)


@pytest.mark.parametrize("place", ["", ".", "/", "~", "..", "file.txt", "sources", "sources/.."])
def test_places_that_are_not_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "work" / "sources").mkdir(parents=True)
    (tmp_path / "work" / "sources" / "train.py").write_text("")
    (tmp_path / "work" / "file.txt").write_text("")
    monkeypatch.chdir(tmp_path / "work")
    before = sorted((tmp_path / "work").rglob("*"))
    with pytest.raises(UserError, match=r"run.output_dir=.*\n  fix: name a folder for this run"):
        RunDir(place).prepare(overwrite=True)
    assert sorted((tmp_path / "work").rglob("*")) == before


def test_foreign_names_beside_checkpoints_do_not_stop_a_run(run: RunDir) -> None:
    for name in (
        ".DS_Store",
        "step_00000009",
        "step_abc",
        "step_00000003.tmp",
        "\u0085 odd \U0001f600",
        "._step_00000002",
    ):
        (run.checkpoints / name).write_text("x")
    (run.checkpoints / ".step_2.old").mkdir()
    (run.path / "last").unlink()
    (run.path / "last").mkdir()  # a copy that turned links into folders
    run.log_file.write_bytes(b"\xff\xfe not UTF-8\n")
    again = RunDir(run.path)
    assert again.prepare(resume="auto") == run.folder(2)
    save(again, 3)
    again.prune(keep_last=1)
    assert again.steps() == [3] and again.last() == run.folder(3) and (run.path / "last").is_dir()


@pytest.mark.parametrize("fails", ["full", "torch", "gone", "config"])
def test_a_failed_write_names_the_last_good_checkpoint(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def torch_full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:662] . unexpected pos 64 vs 0\nmore")

    if fails == "gone":
        shutil.rmtree(run.path)
    elif fails == "torch":
        monkeypatch.setattr(torch, "save", torch_full)
    else:
        monkeypatch.setattr(os, "fsync", full)
    wanted = "there is no earlier checkpoint" if fails == "gone" else r"the last good checkpoint is .*step_00000002"
    with pytest.raises(UserError, match=rf"cannot be written to .*{wanted}\n  fix: .*run.resume=auto"):
        run.write_config("a: 2\n") if fails == "config" else save(run, 3)
    if fails != "gone":
        monkeypatch.undo()
        assert RunDir(run.path).prepare(resume="auto") == run.folder(2)
        assert sorted(f.name for f in run.checkpoints.iterdir()) == ["step_00000001", "step_00000002"]
