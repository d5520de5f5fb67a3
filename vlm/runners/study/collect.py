"""``collect``: what is known of each cell, from what is in the study's folder; nothing is computed or changed."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.common.errors import DataError
from vlm.runners.evaluate.results.stored_run import ANSWERS, read_run
from vlm.runners.study.folder import run_folder
from vlm.runners.study.results import CellResult, Cost, State
from vlm.runners.study.running.asking import NAME, Asking, asked_of
from vlm.runners.study.running.cells_file import read_cells
from vlm.runners.study.running.marks import RunState, read_done, read_failure, state_of
from vlm.runners.train.trackers import LogRecord, of_steps, read_log

if TYPE_CHECKING:
    from vlm.runners.study.cells import Cell, Study
    from vlm.tasks.scoring.statistics import Metric

log = logging.getLogger(__name__)

MIB = 1 << 20
_ORDER: tuple[tuple[RunState, State], ...] = (
    ("failed", "failed"), ("pruned", "pruned"), ("running", "running"), ("interrupted", "interrupted"),
)  # fmt: skip
"""State of a run -> of its cell, whichever comes first."""


def collect(study: Study) -> list[CellResult]:
    """The results of all cells, in the study's order; may be called while the study runs.

    Raises ConfigError: what is asked after training cannot be read.
    """
    asked = asked_of(study)
    logs: dict[str, list[LogRecord]] = {}  # of runs that cells share
    return [result_of(study, cell, asked, logs) for cell in study.cells]


def result_of(study: Study, cell: Cell, asked: Sequence[Asking], logs: dict[str, list[LogRecord]]) -> CellResult:
    """One cell; ``logs`` keeps the log of each run that was read."""
    folder = study.folder
    for run in cell.runs:
        if run.hash not in logs:
            logs[run.hash] = of_steps(read_log(run_folder(folder, run.hash) / "log.jsonl"))
    state, message = cell_state(folder, cell, asked)
    result = CellResult(cell, state, message, cost_of(folder, cell, logs), *losses_of(logs[cell.hash]))
    for asking in asked:
        if asking.answered(folder, cell.hash):
            result.scores.update(scores_of(asking, asking.folder(folder, cell.hash)))
            answers = asking.folder(folder, cell.hash) / f"{NAME}{ANSWERS}"
            if asking.image == "right" and answers.is_file():
                result.answers[asking.dataset] = answers
    return result


def cell_state(folder: Path, cell: Cell, asked: Sequence[Asking]) -> tuple[State, str]:
    """How far a cell is, and why it failed."""
    states = [state_of(folder, run.hash) for run in cell.runs]
    last = cell.hash
    if all(state == "finished" for state in states):
        if all(asking.answered(folder, last) for asking in asked):
            return "done", ""
        if (failure := read_failure(folder, last)) is not None:
            return "failed", failure.message
        return "trained", ""
    for of_run, of_cell in _ORDER:
        if of_run in states:
            failure = read_failure(folder, cell.runs[states.index(of_run)].hash) if of_run == "failed" else None
            return of_cell, failure.message if failure else ""
    return ("interrupted" if "finished" in states else "missing"), ""


def cost_of(folder: Path, cell: Cell, logs: dict[str, list[LogRecord]]) -> Cost:
    """What the training steps of a cell's runs took, and the size of its model."""
    steps = [r for run in cell.runs for r in logs[run.hash] if r["kind"] == "train"]
    done = read_done(folder, cell.hash)

    def total(key: str) -> float:
        return math.fsum(_number(r, key) for r in steps)

    return Cost(
        parameters=done.parameters if done else 0,
        trained=done.trained if done else 0,
        flops=total("flops"),
        seconds=total("seconds"),
        samples=int(total("samples")),
        tokens=int(total("tokens")),
        memory=int(max((_number(r, "memory_mib") for r in steps), default=0) * MIB),
    )


def _number(record: LogRecord, key: str) -> float:
    """A number of a record; 0 where it has none."""
    found = record.get(key, 0)
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else 0.0


def losses_of(records: Sequence[LogRecord]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(step, loss) of training and of validation."""
    curves: dict[str, list[tuple[float, float]]] = {"train": [], "valid": []}
    for record in records:
        if record["kind"] in curves and isinstance(record.get("loss"), int | float):
            curves[record["kind"]].append((float(record["step"]), float(record["loss"])))
    return curves["train"], curves["valid"]


def scores_of(asking: Asking, folder: Path) -> dict[tuple[str, str, str], Metric]:
    """The metrics of one evaluation; none, with a warning, where its values cannot be read."""
    try:
        found = read_run(folder)
    except DataError as error:
        first = str(error).partition("\n")[0]
        log.warning("%s; delete %s, and `vlm study run` asks that again", first, folder)
        return {}
    return {(asking.dataset, image, m.label): m for (_, image), metrics in found.metrics.items() for m in metrics}


def earlier_cells(study: Study) -> int:
    """How many cells of earlier versions of the study are in its folder; they are kept, and in no result."""
    present = {cell.hash for cell in study.cells}
    gone = [name for name in read_cells(study.folder) if name not in present]
    return sum(run_folder(study.folder, name).is_dir() for name in gone)
