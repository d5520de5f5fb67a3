"""After a run: what was predicted against what its log says, and the efficiency that later plans use."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.checkpoint.provenance import read_provenance
from vlm.checkpoint.run_folder import RunDir
from vlm.common.errors import DataError
from vlm.runners.plan.devices import Device, device_named, learn
from vlm.runners.plan.plan import Plan, Planner, Request
from vlm.runners.train.speed.devices import short_name
from vlm.runners.train.trackers import read_log

WARM_UP = 3
"""Steps at the beginning that are left out: the first ones set up libraries and files."""
POSSIBLE = 1.2
"""Share of a device's limits above which these were measured wrongly, such as on a busy machine."""
MIB = 2**20


@dataclass(frozen=True)
class Line:
    """A number of a run, predicted and measured."""

    name: str
    predicted: float
    measured: float
    unit: str

    @property
    def ratio(self) -> float:
        """Predicted / measured."""
        return self.predicted / self.measured if self.measured else float("nan")


@dataclass(frozen=True)
class Comparison:
    """A plan beside the run that it was about."""

    plan: Plan
    lines: list[Line]
    steps: int  # that were compared
    reached: float  # share of the device's limits that the steps reached
    kept: float | None  # mean over the runs so far, which later plans use; None: what it reached is not possible


def hardware_of(folder: Path) -> tuple[str, int]:
    """Name of the device for :func:`device_named`, and processes, as the run recorded them.

    Raises DataError: the run has no checkpoint, or computed on a device that the table does not have.
    """
    last = RunDir(folder).last()
    hardware = (read_provenance(last).get("hardware") or {}) if last is not None else {}
    device, processes = hardware.get("device"), hardware.get("processes", 1)
    if not isinstance(device, str) or not isinstance(processes, int):
        raise DataError(f"{folder}: no checkpoint of it says on what it was trained", fix="name a finished run")
    name = "cpu" if device == "cpu" else short_name(device)
    if name is None:
        raise DataError(f"{folder} was trained on {device!r}, which the table of devices does not have")
    return name, processes


def compare(cfg: Any, folder: Path, device: Device, request: Request) -> Comparison:
    """Plan the run in ``folder`` and read its log; its efficiency is kept.

    Raises DataError: the log has too few steps.
    """
    records = [r for r in read_log(folder / "log.jsonl") if r.get("kind") == "train"]
    steps = records[WARM_UP:]
    if not steps:
        raise DataError(
            f"{folder}/log.jsonl has {len(records)} steps; at least {WARM_UP + 1} are needed to compare",
            fix="compare after a longer run",
        )
    plan = Planner(cfg, request).plan()
    seconds = statistics.median(_number(r, "seconds") - _number(r, "data_seconds") for r in steps)
    samples = statistics.median(_number(r, "samples") for r in steps)
    limit = plan.seconds * plan.efficiency  # at the device's limits
    scaled = samples / plan.samples if plan.samples else 1.0
    lines = [
        Line("peak memory", plan.peak / MIB, max(_number(r, "memory_mib") for r in records), "MiB"),
        Line("time of a step", plan.seconds * scaled, seconds, "s"),
        Line("samples a second", plan.samples / plan.seconds, samples / max(seconds, 1e-9), ""),
    ]
    if flops := [_number(r, "flops") for r in steps if "flops" in r]:
        lines.append(Line("FLOPs of a step", plan.flops * scaled / 1e9, statistics.median(flops) / 1e9, "GFLOP"))
    reached = limit * scaled / seconds
    kept = learn(device, plan.precision, reached) if reached <= POSSIBLE else None
    return Comparison(plan, lines, len(steps), reached, kept)


def request_of(folder: Path) -> tuple[Device, Request]:
    """Where the run in ``folder`` was. Raises DataError: it does not say."""
    name, processes = hardware_of(folder)
    device = device_named(name)
    return device, Request(device, processes)


def _number(record: Any, key: str) -> float:
    value = record.get(key, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
