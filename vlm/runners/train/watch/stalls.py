"""A watchdog over the steps of a run."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlm.common import dist
from vlm.common.errors import printable

log = logging.getLogger(__name__)

FRAMES = 12
"""Innermost frames of the main thread that are shown."""
NAMED = 8
"""Samples that are named."""
KEY = "stalled"
SHORTEST, LONGEST = 0.02, 5.0
"""Seconds between two looks at the clock."""


@dataclass
class Watch:
    """A phase of a step, and how long it has run, seen from the watchdog."""

    step: int
    phase: str
    samples: Sequence[str] = ()
    seconds: float = 0.0  # that the process was running
    next: float = 0.0  # seconds at which it is reported

    def __str__(self) -> str:
        more = f" and {len(self.samples) - NAMED} more" if len(self.samples) > NAMED else ""
        named = f" (samples {', '.join(self.samples[:NAMED])}{more})" if self.samples else ""
        return printable(f"step {self.step}, {self.phase}{named}")


class Watchdog:
    """Reports, from a thread of its own, the phase of a step that does not end in time.

    The thread counts the time between its own looks at the clock, and of a longer gap only one period: while the
    process was stopped or the machine asleep, nothing stalled.

    Args:
        seconds: after which it reports, then after twice as many, and so on; 0: never.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.period = min(max(seconds / 20, SHORTEST), LONGEST)
        self._main = threading.get_ident()
        self._watch: Watch | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watching(self, step: int, phase: str, samples: Sequence[str] = ()) -> Iterator[None]:
        """Within the block, step ``step`` of this process is in ``phase``, working on ``samples``."""
        if not self.seconds:
            yield
            return
        if self._thread is None:
            self._main = threading.get_ident()
            self._thread = threading.Thread(target=self._look, daemon=True, name="watchdog")
            self._thread.start()
        watch = self._watch = Watch(step, phase, samples, next=self.seconds)
        try:
            yield
        finally:
            self._watch = None
            if watch.next > self.seconds:
                log.warning("%s%s went on after %.4g s", _who(), watch, watch.seconds)

    def close(self) -> None:
        """End the thread; the next :meth:`watching` starts another one."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            self._thread, self._ended = None, threading.Event()

    def _look(self) -> None:
        ended, last = self._ended, time.monotonic()
        while not ended.wait(self.period):
            now = time.monotonic()
            if self.tick(now - last):
                self.report()
            last = now

    def tick(self, gap: float) -> bool:
        """Count ``gap`` seconds since the last look; whether it is time to report."""
        watch = self._watch
        if watch is None:
            return False
        # after a longer gap the process itself was not running: stopped, suspended, or starved by others
        watch.seconds += gap if gap <= 2 * self.period else self.period
        if watch.seconds < watch.next:
            return False
        watch.next *= 2
        return True

    def report(self) -> None:
        """Say in which phase this process is, and where its main thread is; rank 0 adds which processes are late."""
        watch = self._watch
        if watch is None:
            return
        frame = sys._current_frames().get(self._main)
        stack = "".join(traceback.format_stack(frame)[-FRAMES:]) if frame is not None else "  (no main thread)\n"
        text = "%s%s has taken %.4g s (run.stall_seconds=%g)%s; the main thread is at\n%s"
        late = self._late(watch)
        log.warning(text, _who(), watch, watch.seconds, self.seconds, late, printable(stack).rstrip())

    def _late(self, watch: Watch) -> str:
        """Leave what this process does in the store of the run; of rank 0, who is least far."""
        peers = dist.peers()
        if peers is None:
            return ""
        peers.note(KEY, json.dumps([watch.step, _place(watch.phase), str(watch)]))
        if peers.rank:
            return ""
        self._ended.wait(2 * self.period)  # the others report at about the same time
        noted = {rank: json.loads(text) for rank, text in peers.notes(KEY).items()}
        states = {rank: state for rank, state in noted.items() if state[0] >= watch.step - 1}  # no earlier stall
        least = min(((step, phase) for step, phase, _ in states.values()), default=None)
        if all((step, phase) == least for step, phase, _ in states.values()) and len(states) == peers.size:
            return "; all processes are in the same phase"
        told = [f"process {r}: {text}" for r, (step, phase, text) in states.items() if (step, phase) == least]
        silent = [str(r) for r in range(peers.size) if r not in states]
        told += [f"no report of process {', '.join(silent)}, which waits for nothing or is stopped"] if silent else []
        return f"; least far: {'; '.join(told)}"


PHASES = ("reading data", "computing", "validating", "evaluating", "saving")
"""Of a step, in order."""


def _place(phase: str) -> int:
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def _who() -> str:
    return f"process {dist.rank()} of {dist.world_size()}: " if dist.world_size() > 1 else ""
