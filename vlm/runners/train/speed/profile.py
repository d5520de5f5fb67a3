"""``run.profile``: a trace of some steps, and a table of the dearest operations."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vlm.checkpoint.run_files import PROFILE, PROFILE_FOLDER
from vlm.common import dist
from vlm.common.owned import replace_text
from vlm.config.run import Profiling

log = logging.getLogger(__name__)

DEAREST = 10
TRACE, TABLE, NUMBERS = PROFILE
WIDEST = 60  # characters of shapes in the table


@dataclass(frozen=True)
class Operation:
    """An operation on inputs of the same shapes, over all recorded steps."""

    name: str
    shapes: str
    calls: int
    seconds: float  # of its own, without the operations that it calls; of the accelerator if it has any
    share: float  # of all operations


class Profile:
    """Records the steps that ``options`` names, on rank 0; None: none.

    Args:
        options: ``run.profile``.
        folder: the run folder.
    """

    def __init__(self, options: Profiling | None, folder: Path) -> None:
        self.options = options if dist.is_main() else None
        self.folder = folder / PROFILE_FOLDER
        self._running: Any = None
        self._recorded: list[int] = []

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step ``number``."""
        options = self.options
        if options is None or not options.first <= number < options.first + options.steps:
            yield
            return
        if self._running is None:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._running = profile(activities=activities, record_shapes=True)
            self._running.start()
        with torch.profiler.record_function(f"step {number}"):
            yield
        self._recorded.append(number)
        if number == options.first + options.steps - 1:
            self.close()

    def close(self) -> None:
        """Write what has been recorded; a second call does nothing. What cannot be written is a warning."""
        running, self._running = self._running, None
        if running is None:
            if self.options is not None and not self._recorded:
                log.warning("run.profile: nothing was recorded: the run did not get to step %d", self.options.first)
            return
        running.stop()
        if not self._recorded:
            return
        found = dearest(running)
        steps = f"{self._recorded[0]} to {self._recorded[-1]}"
        numbers = {"steps": self._recorded, "operations": [asdict(operation) for operation in found]}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            running.export_chrome_trace(str(self.folder / TRACE))
            replace_text(self.folder / TABLE, f"Steps {steps}\n\n{table(found)}\n")
            replace_text(self.folder / NUMBERS, json.dumps(numbers, indent=1) + "\n")
        except OSError as error:
            log.warning("run.profile: the profile cannot be written: %s", error)
            return
        log.info("profile of steps %s in %s:\n%s", steps, self.folder, table(found))


def dearest(recorded: Any) -> list[Operation]:
    """The operations that took longest by themselves, the dearest first."""
    events = [e for e in recorded.key_averages(group_by_input_shape=True) if not e.key.startswith("step ")]
    on_device = any(e.self_device_time_total for e in events)
    times = {id(e): (e.self_device_time_total if on_device else e.self_cpu_time_total) / 1e6 for e in events}
    total = sum(times.values()) or 1.0
    first = sorted(events, key=lambda e: times[id(e)], reverse=True)[:DEAREST]
    return [Operation(e.key, _shapes(e.input_shapes), e.count, times[id(e)], times[id(e)] / total) for e in first]


def _shapes(shapes: Any) -> str:
    """``[4, 512] [512, 32]``; scalars are left out."""
    return " ".join(str(shape) for shape in shapes if shape) if isinstance(shapes, list) else ""


def table(operations: list[Operation]) -> str:
    """The operations as text in columns."""
    width = max((len(o.name) for o in operations), default=9)
    lines = [f"{'operation':<{width}}  {'share':>6}  {'seconds':>9}  {'calls':>6}  shapes"]
    for o in operations:
        shapes = o.shapes if len(o.shapes) <= WIDEST else o.shapes[: WIDEST - 3] + "..."
        lines.append(f"{o.name:<{width}}  {o.share:>6.1%}  {o.seconds:>9.4f}  {o.calls:>6}  {shapes}".rstrip())
    return "\n".join(lines)
