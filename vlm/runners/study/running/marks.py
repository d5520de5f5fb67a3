"""Small files beside a run folder that say how the run ended."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vlm.common.owned import replace_text
from vlm.common.paths import make_folder
from vlm.runners.study.folder import done_file, failure_file, lock_file, run_folder
from vlm.runners.study.running.locks import is_held

RunState = Literal["missing", "running", "interrupted", "failed", "pruned", "finished"]


@dataclass(frozen=True)
class Done:
    """How a run ended that needs no more training.

    Attributes:
        status: ``finished``, ``early_stop`` or ``pruned``.
        step: of its last checkpoint.
        parameters, trained: of its model.
    """

    status: str
    step: int
    parameters: int = 0
    trained: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a run failed last, and when (seconds since 1970)."""

    message: str
    time: float


def read_done(study: Path, run: str) -> Done | None:
    """How a run ended; None if it has to be trained, e.g. since its folder was deleted."""
    found = _read(done_file(study, run))
    try:
        done = Done(str(found["status"]), int(found["step"]), int(found["parameters"]), int(found["trained"]))
    except (KeyError, TypeError, ValueError):
        return None
    kept = run_folder(study, run) / "checkpoints" / f"step_{done.step:08d}"
    return done if kept.is_dir() or done.status == "pruned" else None


def write_done(study: Path, run: str, done: Done) -> None:
    """Note that a run needs no more training."""
    _write(done_file(study, run), asdict(done))


def read_failure(study: Path, run: str) -> Failure | None:
    """Why a run failed last; None if it did not."""
    found = _read(failure_file(study, run))
    try:
        return Failure(str(found["message"]), float(found["time"]))
    except (KeyError, TypeError, ValueError):
        return None


def write_failure(study: Path, run: str, message: str) -> None:
    """Note why a run failed."""
    _write(failure_file(study, run), asdict(Failure(message, time.time())))


def state_of(study: Path, run: str) -> RunState:
    """How far a run is."""
    if (done := read_done(study, run)) is not None:
        return "pruned" if done.status == "pruned" else "finished"
    if is_held(lock_file(study, run)):
        return "running"
    if read_failure(study, run) is not None:
        return "failed"
    folder = run_folder(study, run)
    return "interrupted" if (folder / "log.jsonl").is_file() else "missing"


def _read(file: Path) -> dict[str, Any]:
    """The object in a small file; empty if there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, data: dict[str, Any]) -> None:
    make_folder(file.parent)
    replace_text(file, json.dumps(data, indent=1) + "\n")
