"""The processes of a run watch each other: when one ends early, the others say which and why, within seconds.

A process that fails leaves its reason in the store that the group was started with. One that is killed leaves nothing;
a process of the same machine sees that it is gone and leaves that. What a collective call raises then (gloo: a closed
connection) becomes one message. Where it raises nothing (NCCL waits), a thread ends the process after a while.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from vlm.common.errors import UserError
from vlm.common.logging import say

FAILED = "failed"
PERIOD = 1.0
"""Seconds between two looks at the others."""
WAIT = 6.0
"""Seconds that a process whose call failed waits for the reason."""
GRACE = 60.0
"""Seconds after which a process that still waits for a dead one is ended."""
LOST = 2
"""Exit code of a process that ends because another one did."""


class ProcessLostError(UserError):
    """Another process of the run ended."""


def is_alive(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class Peers:
    """The other processes of the run.

    Args:
        store: of ``torch.distributed``, a connection of its own.
        rank: of this process.
        size: number of processes.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size
        self._local: dict[int, tuple[int, int | None]] = {}
        self._ended, self._known = threading.Event(), ""
        store.set(f"peer/{rank}", json.dumps([socket.gethostname(), os.getpid()]))
        for other in range(size):
            host, number = json.loads(store.get(f"peer/{other}"))
            if other != rank and host == socket.gethostname():
                self._local[other] = (number, _handle_of(number))
        self._thread = threading.Thread(target=self._watch, daemon=True, name="peers")
        self._thread.start()

    def fail(self, error: BaseException | str) -> None:
        """Leave the reason why this process ends; the first reason of all processes counts."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            text = str(error)
        self._leave(f"process {self.rank} of {self.size} (pid {os.getpid()}) ended: {text}")
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(2 * PERIOD)  # the store ends with this process; the others look once more

    def _leave(self, text: str) -> None:
        with suppress(RuntimeError):  # the store is gone with the process that held it
            self._store.compare_set(FAILED, "", text)

    def reason(self) -> str:
        """Why another process ended; empty as far as none is known to have."""
        if not self._known:
            self._known = self._look()
        return self._known

    def _look(self) -> str:
        try:
            if self._store.check([FAILED]):
                return str(self._store.get(FAILED).decode())
        except RuntimeError:
            return self._gone() or "the process that keeps the store of the run is gone"
        gone = self._gone()
        if gone:
            self._leave(gone)
        return gone

    def _gone(self) -> str:
        dead = [(r, number) for r, (number, handle) in self._local.items() if _has_ended(number, handle)]
        if not dead:
            return ""
        rank, number = dead[0]
        return (
            f"process {rank} of {self.size} (pid {number}) is gone without a word: it was killed, often by the system "
            "for lack of memory (see `dmesg`)"
        )

    def lost(self, wait: float = WAIT) -> ProcessLostError | None:
        """The error to raise in place of a failed collective call; None if all others live after ``wait`` seconds."""
        end = time.monotonic() + wait
        while not (reason := self.reason()) and time.monotonic() < end:
            time.sleep(0.1)
        return self._error(reason) if reason else None

    def _error(self, reason: str) -> ProcessLostError:
        fix = "see the first failure; run.resume=auto continues a training run"
        return ProcessLostError(f"process {self.rank} stops because {reason}", fix=fix)

    def note(self, name: str, text: str) -> None:
        """Leave a text of this process for the others, in place of an earlier one."""
        with suppress(RuntimeError):
            self._store.set(f"{name}/{self.rank}", text)

    def notes(self, name: str) -> dict[int, str]:
        """What the processes noted under that name, by rank; without those that noted nothing."""
        with suppress(RuntimeError):
            there = [rank for rank in range(self.size) if self._store.check([f"{name}/{rank}"])]
            return {rank: self._store.get(f"{name}/{rank}").decode() for rank in there}
        return {}

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join(timeout=PERIOD)

    def _watch(self) -> None:
        while not self._ended.wait(PERIOD):
            if reason := self.reason():
                if not self._ended.wait(GRACE):
                    say(f"error: {self._error(reason)}", sys.stderr)
                    os._exit(LOST)
                return


def _handle_of(process: int) -> int | None:
    """A handle by which the end of a process is seen even before its parent has asked for it (Linux)."""
    try:
        return os.pidfd_open(process) if sys.platform == "linux" else None
    except OSError:
        return None


def _has_ended(process: int, handle: int | None) -> bool:
    if handle is None:
        return not is_alive(process)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))


def store_of(store: Any, prefix: Any, timeout: timedelta) -> Any:
    """A connection of our own to a store, under our own names."""
    own = store.clone() if hasattr(store, "clone") else store
    own.set_timeout(timeout)
    return prefix("vlm.peers", own)
