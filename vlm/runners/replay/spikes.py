"""The worst steps of a run's log, judged as :mod:`vlm.runners.train.watch.spikes` judges them while it trains."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm.checkpoint.run_folder import RunDir
from vlm.common.errors import UserError
from vlm.config.run import SpikeLimits
from vlm.config.schema import Report, read
from vlm.config.tree import parse_file
from vlm.runners.replay.found import RunFound
from vlm.runners.train.trackers import LogRecord
from vlm.runners.train.watch.spikes import LEVEL, History


@dataclass(frozen=True)
class WorstStep:
    """A step of the log."""

    step: int
    loss: float
    grad_norm: float
    quantity: str  # ``loss`` or ``gradient norm``, whichever is further above its median
    median: float  # of that quantity, over the steps before
    score: float  # robust standard deviations above it
    above: bool  # whether it is above the run's limit
    skipped: bool
    samples: tuple[str, ...] = ()  # where the log names them
    trained: int | None = None  # steps that a replay trains again; None: no checkpoint before it is left


def limits_of(run: RunDir) -> SpikeLimits:
    """``run.spike`` of a run folder, without reading anything else of its configuration.

    Raises ConfigError: it is not usable.
    """
    section = parse_file(run.config_file).data.get("run")
    report = Report({}, {})
    stated = section.get("spike") if isinstance(section, dict) else None
    limits = read(SpikeLimits, stated or {}, ("run", "spike"), report)
    report.raise_if_any(str(run.config_file))
    return limits or SpikeLimits()


def worst_steps(run: RunFound, count: int) -> list[WorstStep]:
    """The ``count`` steps that are furthest above those before them, the worst first.

    Raises UserError: the run has no log, or too few steps to judge one.
    """
    if not run.records:
        raise UserError(
            f"{run.dir.path}: log.jsonl is missing or has no training step",
            fix="train with the tracker jsonl (run.trackers), or copy the whole run folder",
        )
    found = scored(run.records, limits_of(run.dir))
    if not found:
        raise UserError(f"{run.dir.path}: {len(run.records)} steps in the log are too few to judge one")
    found.sort(key=lambda pair: -pair[0])
    checkpoints = run.dir.steps()
    result = []
    for score, quantity, median, above, record in found[:count]:
        step = record["step"]
        before = max([s for s in checkpoints if s < step], default=0 if run.records[0]["step"] == 1 else None)
        names = run.spikes.get(step, {}).get("sample_ids")
        result.append(
            WorstStep(
                *(step, record["loss"], record["grad_norm"], quantity, median, score, above),
                skipped=bool(record.get("skipped")),
                samples=tuple(map(str, names)) if isinstance(names, list) else (),
                trained=None if before is None else step - 1 - before,
            )
        )
    return result


def scored(records: Sequence[LogRecord], limits: SpikeLimits) -> list[tuple[float, str, float, bool, LogRecord]]:
    """Deviations, quantity, its median, and whether that is a spike, of each step that can be judged; in order."""
    history, result, in_a_row = History(limits), [], 0
    for record in records:
        loss, norm = float(record["loss"]), float(record["grad_norm"])
        found = {name: (score if not math.isnan(score) else math.inf, limit.median)
                 for name, (score, limit) in history.scores(loss, norm).items()}  # fmt: skip
        above = any(score > limits.deviations for score, _ in found.values())
        in_a_row = in_a_row + 1 if above else 0
        if in_a_row > LEVEL:
            history.clear()
        if found:
            quantity = max(found, key=lambda name: found[name][0])
            score, median = found[quantity]
            result.append((score, quantity, median, above and in_a_row <= LEVEL, record))
        if (not above or in_a_row > LEVEL) and math.isfinite(loss) and math.isfinite(norm):
            history.add(loss, norm)
    return result


def to_json(run: RunFound, steps: Sequence[WorstStep]) -> str:
    """The steps as JSON; numbers that are not finite are null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = [{key: plain(value) for key, value in vars(step).items()} for step in steps]
    text = json.dumps({"run": str(run.dir.path), "limits": vars(limits_of(run.dir)), "steps": rows}, indent=1)
    return text + "\n"
