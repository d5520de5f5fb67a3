"""Where a study keeps what.

Under the study's folder::

    journal.log             Optuna's journal: which cell was begun by whom, and how it ended
    cells.json              hash -> levels, seed, hashes of its runs: of all cells that ever were in the study
    queue.lock              held for a moment by whoever changes the queue
    workers/ID.lock         held by a worker as long as it lives
    runs/HASH/              run folders
    runs/HASH.yaml          its configuration, as given to the process that trains it
    runs/HASH.log           what a run printed
    runs/HASH.done.json     status, step and size of the model; a run without it is trained (on)
    runs/HASH.lock          held by the process that works on the run
    runs/HASH.failed.json   why a run failed last: message, time; deleted when it is begun again
    evaluations/HASH/EVAL/  results of `vlm eval` over the cell's last run; EVAL is a hash of what is asked
    report.html, report.md, report.tex
"""

from __future__ import annotations

from pathlib import Path

JOURNAL = "journal.log"
CELLS = "cells.json"
QUEUE_LOCK = "queue.lock"
WORKERS = "workers"


def run_folder(study: Path, run: str) -> Path:
    """The run folder of a stage's run."""
    return study / "runs" / run


def config_file(study: Path, run: str) -> Path:
    """The configuration that the run is trained with."""
    return study / "runs" / f"{run}.yaml"


def done_file(study: Path, run: str) -> Path:
    """How the run ended, if it needs no more training."""
    return study / "runs" / f"{run}.done.json"


def log_file(study: Path, run: str) -> Path:
    """What a run printed."""
    return study / "runs" / f"{run}.log"


def lock_file(study: Path, run: str) -> Path:
    """Locked while a process works on the run."""
    return study / "runs" / f"{run}.lock"


def failure_file(study: Path, run: str) -> Path:
    """Why the run failed, if it did."""
    return study / "runs" / f"{run}.failed.json"


def evaluation_folder(study: Path, run: str, asked: str) -> Path:
    """Results of one evaluation of a cell's last run."""
    return study / "evaluations" / run / asked
