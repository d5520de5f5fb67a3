"""Studies of the small published composition that are really trained, each run in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlm.checkpoint.run_folder import RunDir, read_checkpoint
from vlm.runners.study.cells import Study
from vlm.runners.study.collect import collect
from vlm.runners.study.folder import log_file, run_folder
from vlm.runners.study.run import Ended, run_study
from vlm.runners.study.running.locks import is_held
from vlm.runners.study.running.marks import read_done
from vlm.runners.study.running.search import open_study
from vlm.runners.study.submit import submit
from vlm.runners.train.trackers import read_log

pytest.importorskip("optuna")
pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
DATA = TESTS / "golden" / "minigpt4" / "open"
ALWAYS = {"run.trackers": ["jsonl"], "run.report": False, "run.num_workers": 0, "run.val_freq": 0}
WEIGHTS = [
    {"format": "eva", "path": f"{DATA}/eva_vit_g.pth", "into": "vision"},
    {"format": "hf_llm", "path": f"{DATA}/llm", "into": "llm"},
    {"format": "blip2_qformer", "path": f"{DATA}/blip2_pretrained_flant5xxl.pth", "into": "bridge.0"},
    {"format": "trained", "path": ""},
]


def lasting(steps: int) -> dict[str, Any]:
    return {"run.max_steps": steps, "run.iters_per_epoch": steps}


def written(folder: Path, set: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A study file over the small composition; it is replaced if it is there."""
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text((TESTS / "equivalence" / "tiny.yaml").read_text().replace("DATA", str(DATA)))
    study = {"output": str(folder / "out"), "set": {**ALWAYS, **(set or {})}, **sections}
    (folder / "study.yaml").write_text(json.dumps(study))
    return folder / "study.yaml"


def go(file: Path, workers: int = 1) -> tuple[Study, Ended, list[str]]:
    study, _ = open_study(str(file))
    lines: list[str] = []
    return study, run_study(study, workers=workers, show=lines.append), lines


def weights(study: Study, run: str) -> dict[str, torch.Tensor]:
    last = RunDir(run_folder(study.folder, run)).last()
    assert last is not None
    return read_checkpoint(last)[0]


def until(true: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_two_workers_a_failing_cell_a_new_cell_and_a_new_question(tmp_path: Path) -> None:
    for k in range(3):
        Image.new("RGB", (42, 42), (60 * k, 10, 200)).save(tmp_path / f"{k}.png")
    rows = [{"image": f"{k}.png", "question": "what?", "answer": "blue" if k else "red"} for k in range(3)]
    (tmp_path / "say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = {
        "first": {"base": "base.yaml"},
        "last": {"base": "base.yaml", "into": "model.weights.3.path", "set": {"model.weights": WEIGHTS}},
    }

    def study_file(rates: list[float], **more: Any) -> Path:
        return written(tmp_path, lasting(2), stages=stages, axes={"last.run.init_lr": rates}, **more)

    study, ended, lines = go(study_file([1e-3, 1e30, 1e-2]), workers=2)
    results = collect(study)
    assert [r.state for r in results] == ["done", "failed", "done"] and ended.exit_code == 1
    assert "not a number" in results[1].message and [c.hash for c, _ in ended.failed] == [results[1].cell.hash]
    (first,) = {cell.runs[0].hash for cell in study.cells}
    steps = [r["step"] for r in read_log(run_folder(study.folder, first) / "log.jsonl") if r["kind"] == "train"]
    assert steps == [1, 2] and results[0].cost.trained == 1568 and results[0].cost.samples == 8
    before = {cell.hash: log_file(study.folder, cell.hash).read_bytes() for cell in study.cells}

    places = {"ann_path": f"{tmp_path}/say.jsonl", "image_path": str(tmp_path)}
    say = {"format": "table", "batch_size": 2, "max_new_tokens": 3, "build_info": places}
    asked = {"limit": 2, "images": ["right", "none"], "datasets": {"say": say}}
    moved = tmp_path / "renamed"  # whose stored configurations name the folder that it was in
    study.folder.rename(moved)
    study, ended, lines = go(study_file([1e-3, 1e-2, 3e-3], evaluate=asked, output=str(moved)))
    assert ended.exit_code == 0 and ended.done == 3
    for result in collect(study):
        assert result.state == "done" and {control for _, control, _ in result.scores} == {"right", "none"}
        assert all(len(metric.units) == 2 for metric in result.scores.values()) and list(result.answers) == ["say"]
        told = log_file(study.folder, result.cell.hash).read_bytes()
        trained_now = b"finished after step" in told.removeprefix(before.get(result.cell.hash, b""))
        assert trained_now == (result.cell.hash not in before)


def test_killed_workers_and_runs_go_on_and_the_result_is_the_same(tmp_path: Path) -> None:
    steps = {**lasting(30), "run.save_freq": 4}
    file = written(tmp_path / "killed", steps, base="base.yaml")
    study, _ = open_study(str(file))
    (run,) = (cell.hash for cell in study.cells)
    log = run_folder(study.folder, run) / "log.jsonl"

    def steps_done() -> int:
        return log.read_bytes().count(b"\n") if log.is_file() else 0

    command = [sys.executable, str(HERE / "run_alone.py"), str(file)]
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    until(lambda: steps_done() >= 6)
    worker.kill()  # its child saves and ends by itself
    worker.wait()
    until(lambda: not is_held(study.folder / "runs" / f"{run}.lock"))
    assert collect(study)[0].state == "interrupted" and "SIGTERM received" in log_file(study.folder, run).read_text()

    reached = steps_done()
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(go, file)
        until(lambda: steps_done() >= reached + 6)
        child = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and trains(p, study.folder, run)]
        os.kill(child[0], signal.SIGKILL)
        _, ended, lines = going.result()
    assert ended.exit_code == 1 and any("SIGKILL" in line for line in lines) and collect(study)[0].state == "failed"

    done, ended, _ = go(file)
    assert ended.exit_code == 0 and read_done(study.folder, run) is not None
    straight, ended, _ = go(written(tmp_path / "straight", steps, base="base.yaml"))
    one, other = weights(done, run), weights(straight, straight.cells[0].hash)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert [r["loss"] for r in read_log(log)] == [
        r["loss"] for r in read_log(run_folder(straight.folder, straight.cells[0].hash) / "log.jsonl")
    ]


def trains(process: Path, folder: Path, run: str) -> bool:
    """Whether a process prints into the log of a run, as the one that trains it does."""
    try:
        return os.readlink(process / "fd" / "1") == str(log_file(folder, run).resolve())
    except OSError:
        return False


def test_jobs_of_submitit_are_workers(tmp_path: Path) -> None:
    import submitit

    axes = {"run.init_lr": [1e-3, 1e-2]}
    file = written(tmp_path, lasting(2), base="base.yaml", axes=axes, cluster={"jobs": 2})
    lines: list[str] = []
    names = submit(file, cluster="local", show=lines.append)
    assert len(names) == 2 and "sent 2 workers (local)" in lines[1]
    study, _ = open_study(str(file))
    until(lambda: all(r.state == "done" for r in collect(study)))
    jobs = [submitit.local.local.LocalJob(tmp_path / "out" / "jobs", name) for name in names]
    until(lambda: all(job.paths.result_pickle.exists() for job in jobs))
    assert [job.result() for job in jobs] == [0, 0]
    told = "".join(log_file(study.folder, cell.hash).read_text() for cell in study.cells)
    assert told.count("finished after step 2") == 2 and submit(file, cluster="local", show=lines.append) == []
