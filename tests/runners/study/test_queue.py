"""The queue of a study: each cell is done once, whoever asks and whatever ends the workers."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vlm.common import dist
from vlm.common.errors import DataError, UserError
from vlm.runners.study.cells import Cell, StageRun, Study
from vlm.runners.study.collect import collect, earlier_cells
from vlm.runners.study.file import StudyFile
from vlm.runners.study.folder import JOURNAL, config_file, failure_file, lock_file, log_file, run_folder
from vlm.runners.study.run import Ended, run_study
from vlm.runners.study.running import locks
from vlm.runners.study.running.child import Job
from vlm.runners.study.running.journal import CELL, WORKER, Journal, Worker, fill, in_turn, mend
from vlm.runners.study.running.locks import FileLock, is_held
from vlm.runners.study.running.marks import Done, read_done, write_done
from vlm.runners.study.running.work import reason_of

pytest.importorskip("optuna")

Watch = Callable[[], bool]


class Configured:
    """In place of a configuration."""

    def __init__(self, name: str) -> None:
        self.resolved = {"run": {"job_name": name}}


def made(folder: Path, *names: str, first: str = "") -> Study:
    """A study whose cells have these names as labels and hashes; with ``first`` they share a stage of that hash."""
    before = (StageRun("one", first, Configured(first)),) if first else ()  # type: ignore[arg-type]
    cells = [
        Cell({"axis": n}, 0, (*before, StageRun("two", n, Configured(n), first or None)))  # type: ignore[arg-type]
        for n in names
    ]
    return Study(StudyFile(), folder / "study.yaml", folder / "out", (), ("one", "two"), tuple(cells), ())


class Fake:
    """Does jobs at once and notes them; ``fails``: runs that print a reason and end with code 2."""

    def __init__(self, fails: tuple[str, ...] = (), before: Callable[[Job], None] = lambda job: None) -> None:
        self.fails, self.before = fails, before
        self.done: list[str] = []

    def __call__(self, job: Job, lock: FileLock, watch: Watch) -> int:
        assert is_held(lock_file(job.study, job.run))
        self.before(job)
        self.done.append(job.run)
        if job.run in self.fails:
            log_file(job.study, job.run).write_text("12:00:00 begun\nerror: no such file\n  fix: name one\n")
            return 2
        (run_folder(job.study, job.run) / "checkpoints" / "step_00000005").mkdir(parents=True, exist_ok=True)
        write_done(job.study, job.run, Done("finished", 5))
        return 0


def go(study: Study, fake: Fake, **options: object) -> tuple[Ended, list[str]]:
    lines: list[str] = []
    return run_study(study, execute=fake, show=lines.append, **options), lines  # type: ignore[arg-type]


def test_each_cell_is_done_once_in_order_and_told(tmp_path: Path) -> None:
    study, fake = made(tmp_path, "a", "b", "c"), Fake()
    ended, lines = go(study, fake)
    assert (fake.done, ended.done, ended.exit_code) == (["a", "b", "c"], 3, 0)
    assert [r.state for r in collect(study)] == ["done"] * 3
    assert lines[0].endswith("3 cells, 0 done, 3 to do") and lines[2].startswith("[1/3] a: done in 0:00")
    again, lines = go(study, fake)
    assert len(fake.done) == 3 and again == Ended() and len(lines) == 1
    assert list(json.loads((study.folder / "cells.json").read_text())) == ["a", "b", "c"]
    assert "job_name: b" in config_file(study.folder, "b").read_text()


def test_workers_share_the_queue_and_a_first_stage_is_trained_once(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=10)

    def meet(job: Job) -> None:
        if job.run in ("a", "b"):  # each waits for the other, so both workers have one
            together.wait()

    study, fake = made(tmp_path, "a", "b", "c", first="zero"), Fake(before=meet)
    ended, _ = go(study, fake, workers=2)
    assert sorted(fake.done) == ["a", "b", "c", "zero"] and fake.done[0] == "zero"
    assert ended.done == 3 and not list((study.folder / "workers").iterdir())


def test_a_failed_cell_is_listed_and_begun_again(tmp_path: Path) -> None:
    study = made(tmp_path, "a", "b", first="zero")
    ended, lines = go(study, Fake(fails=("a",)))
    assert ended.exit_code == 1 and [(c.hash, m) for c, m in ended.failed] == [("a", "no such file\n  fix: name one")]
    assert any("FAILED" in line and "no such file" in line for line in lines) and "failed: a (a)" in lines[-2]
    assert [(r.state, r.message[:12]) for r in collect(study)] == [("failed", "no such file"), ("done", "")]
    kept, calm = Fake(), Fake()
    ended, _ = go(study, calm, retry=False)
    assert (ended.done, len(ended.failed), calm.done) == (0, 1, [])
    assert go(study, kept)[0].exit_code == 0 and kept.done == ["a"]
    assert not failure_file(study.folder, "a").exists()


def test_a_first_stage_that_fails_is_tried_once_for_all_its_cells(tmp_path: Path) -> None:
    study, fake = made(tmp_path, "a", "b", first="zero"), Fake(fails=("zero",))
    ended, _ = go(study, fake)
    assert fake.done == ["zero"] and len(ended.failed) == 2
    assert {r.state for r in collect(study)} == {"failed"}


def test_only_new_cells_of_an_amended_study_are_done_and_old_ones_are_kept(tmp_path: Path) -> None:
    go(made(tmp_path, "a", "b"), Fake())
    fake, amended = Fake(), made(tmp_path, "b", "c")
    ended, lines = go(amended, fake)
    assert fake.done == ["c"] and ended.done == 1 and "2 cells, 1 done" in lines[0]
    assert run_folder(amended.folder, "a").is_dir() and earlier_cells(amended) == 1
    assert len(collect(amended)) == 2


def test_a_worker_of_an_older_file_leaves_new_cells_to_those_who_know_them(tmp_path: Path) -> None:
    """The same with two studies whose files have one name: they share the folder, and each does its own cells."""
    old, new, mine = made(tmp_path, "a", "b"), made(tmp_path, "c", "a"), Fake()

    def amended(job: Job) -> None:
        if job.run == "a":
            journal = Journal(new.folder, "cells")
            fill(journal, [(c.hash, c.levels) for c in new.cells], True)

    ended, _ = go(old, Fake(before=amended))
    assert (ended.done, ended.exit_code) == (2, 0)
    assert [t.user_attrs[CELL] for t in Journal(new.folder, "cells").waiting()] == ["c"]
    ended, lines = go(new, mine, retry=False)
    assert mine.done == ["c"] and ended.exit_code == 0 and lines[-1].startswith("[2/2] c: done")


def test_labels_that_change_nothing_are_one_cell(tmp_path: Path) -> None:
    study = made(tmp_path, "a", "a", "b")
    _, lines = go(study, Fake())
    assert "2 cells, 0 done, 2 to do" in lines[0] and lines[-1].startswith("[2/2]")
    assert go(study, Fake())[0] == Ended(), "nothing is left"


def test_what_a_dead_worker_was_doing_waits_again(tmp_path: Path) -> None:
    study = made(tmp_path, "a", "b", "c")
    study.folder.mkdir()
    journal = Journal(study.folder, "cells")
    fill(journal, [(c.hash, c.levels) for c in study.cells], True)
    dead, living = Worker(study.folder), Worker(study.folder)
    first, second = journal.take(dead), journal.take(living)
    assert first is not None and second is not None and len(journal.running()) == 2
    assert second.user_attrs == {CELL: "b", "levels": {"axis": "b"}, WORKER: living.name}
    dead.lock.release()  # as the system does for a process that is killed
    fake = Fake()
    ended, lines = go(study, fake)
    assert sorted(fake.done) == ["a", "c"] and ended.elsewhere == 1
    assert "other commands are working on 1 cell" in lines
    assert not dead.lock.file.exists() and living.lock.file.exists()


def test_only_names_cells(tmp_path: Path) -> None:
    study, fake = made(tmp_path, "aaaa11", "aaaa22", "b"), Fake()
    go(study, fake, only=["b", "aaaa2"])
    assert fake.done == ["aaaa22", "b"]
    with pytest.raises(UserError, match="--only 'x': no cell is called so"):
        go(study, fake, only=["x"])


def test_a_run_that_somebody_trains_without_the_journal_is_waited_for(tmp_path: Path) -> None:
    study, fake, lock = made(tmp_path, "a"), Fake(), FileLock(lock_file(tmp_path / "out", "a"))
    assert lock.acquire()
    threading.Timer(0.2, lock.release).start()
    began = time.monotonic()
    assert go(study, fake)[0].done == 1 and time.monotonic() - began > 0.15


def test_half_written_folders_are_what_they_are(tmp_path: Path) -> None:
    study = made(tmp_path, "a", "b", "c", "d", first="zero")
    zero = run_folder(study.folder, "zero")
    assert {r.state for r in collect(study)} == {"missing"}
    zero.mkdir(parents=True)
    (zero / "log.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.5, "flops": 3e9, "tok')
    assert collect(study)[0].state == "interrupted" and collect(study)[0].cost.flops == 0
    (zero / "log.jsonl").write_text(
        '{"kind": "train", "step": 1, "loss": 2.5, "flops": 3e9, "seconds": 2, "samples": 4}\n'
    )
    assert collect(study)[0].cost.flops == 3e9 and collect(study)[0].loss == []
    write_done(study.folder, "zero", Done("finished", 7, 100, 10))
    assert collect(study)[0].state == "interrupted"  # the checkpoint that it speaks of is not there
    for name in ("zero", "b"):
        (run_folder(study.folder, name) / "checkpoints" / "step_00000007").mkdir(parents=True)
    write_done(study.folder, "b", Done("finished", 7, 100, 10))
    failure_file(study.folder, "a").write_text("{")
    write_done(study.folder, "c", Done("pruned", 0))
    lock = FileLock(lock_file(study.folder, "d"))
    assert lock.acquire()
    assert [r.state for r in collect(study)] == ["interrupted", "done", "pruned", "running"]
    assert read_done(study.folder, "zero") == Done("finished", 7, 100, 10) and collect(study)[1].cost.trained == 10
    lock.release()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"op_code": 5, "wor\n', "line .*: "),
        ("[]\n", "none of Optuna's"),
        ('{"op_code": 4, "worker_id": "x"}\n', "KeyError"),
    ],
)
def test_a_damaged_journal_is_one_message(tmp_path: Path, line: str, told: str) -> None:
    study = made(tmp_path, "a")
    go(study, Fake())
    with (study.folder / JOURNAL).open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match=f"journal.log: damaged.*{told}.*\n  fix: delete it"):
        go(made(tmp_path, "a", "b"), Fake())


def test_half_a_line_of_a_machine_that_lost_its_power_is_cut_off(tmp_path: Path) -> None:
    go(made(tmp_path, "a"), Fake())
    journal, fake = tmp_path / "out" / JOURNAL, Fake()
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])  # how "a" ended is lost, but its run folder says it
    assert go(made(tmp_path, "a", "b"), fake)[0].done == 1 and fake.done == ["b"]
    journal.write_bytes(whole + whole[:30])
    mend(journal)
    assert journal.read_bytes() == whole


def test_a_full_disk_and_a_file_system_without_locks_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(job: Job) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=f"{tmp_path / 'out'}: No space left on device\n  fix: .* the same command"):
        go(made(tmp_path, "a"), Fake(before=full))
    assert go(made(tmp_path, "a"), Fake())[0].done == 1

    def none(handle: int) -> bool:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks, "_locked", none)
    assert [r.state for r in collect(made(tmp_path, "a", "b"))] == ["done", "missing"]
    with pytest.raises(UserError, match=r"queue.lock: cannot be locked \(No locks available\)"):
        go(made(tmp_path, "a", "b"), Fake())


def test_reasons_of_failures(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("error: old\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("step 1\nTraceback (most recent call last):\n  File x\nRuntimeError: out of memory\nsummary\n")
    assert reason_of(log, start, 1) == f"RuntimeError: out of memory (exit code 1; see {log})"
    assert reason_of(log, 0, 2) == "old"
    log.write_text("error: no file\n  fix: name one\nerror: process 1 stops because of process 0\nTraceback\n")
    assert reason_of(log, 0, 2) == "no file\n  fix: name one"
    log.write_text("error: old\nstep 1\nsummary\n")
    assert reason_of(log, start, -9) == f"its process was ended by SIGKILL, as where memory runs out (see {log})"
    assert "no message (exit code 3" in reason_of(tmp_path / "none", 0, 3)
    assert "was ended by signal 35" in reason_of(log, start, -35), "one without a name"


def test_cells_that_share_a_first_stage_are_apart() -> None:
    assert in_turn([["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_program_holds_the_lock_that_it_was_given(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire() and not FileLock(tmp_path / "lock").acquire()
    program = subprocess.Popen(["sleep", "60"], pass_fds=[lock.handle])
    lock.release()
    assert is_held(tmp_path / "lock")
    program.kill()
    program.wait()
    assert not is_held(tmp_path / "lock") and not is_held(tmp_path / "none")


def test_two_commands_on_one_journal_do_each_cell_once(tmp_path: Path) -> None:
    study = made(tmp_path, *"abcdef", first="zero")
    fakes = [Fake(before=lambda job: time.sleep(0.03)) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        ended = [found.result()[0] for found in [pool.submit(go, study, fake) for fake in fakes]]
    assert [e.exit_code for e in ended] == [0, 0] and sum(e.done for e in ended) == 6
    assert sorted(fakes[0].done + fakes[1].done) == [*"abcdef", "zero"] and all(fake.done for fake in fakes)


def test_workers_get_accelerators_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "pick_device", lambda: torch.device("cuda", 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    names = [list(own.values()) for own in dist.split_accelerators(2, 2)]
    assert names == [["4,5"], ["6,4"]] and dist.split_accelerators(1, 2) == [{}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert dist.split_accelerators(2) == [{}, {}]
