"""Where a study keeps what.

Under the study's folder::

    journal.log             Optuna's journal: which cell was begun by whom, and how it ended
    cells.json              hash -> levels, seed, hashes of its runs: of all cells that ever were in the study
    runs/HASH/              run folders
    runs/HASH.log           what a run printed
    runs/HASH.lock          held by the process that works on the run
    runs/HASH.failed.json   why a run failed last: message, time; deleted when it is begun again
    evaluations/HASH/EVAL/  results of `vlm eval` over the cell's last run; EVAL is a hash of what is asked
    report.html, report.md, report.tex
"""

from __future__ import annotations

from pathlib import Path

JOURNAL = "journal.log"
CELLS = "cells.json"


def run_folder(study: Path, run: str) -> Path:
    """The run folder of a stage's run."""
    return study / "runs" / run


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
