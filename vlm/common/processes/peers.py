"""The processes of a run watch each other: when one ends early, the others say which and why, within seconds.

A process that fails leaves its reason in the store that the group was started with. One that is killed leaves nothing;
a process of the same machine sees that it is gone and leaves that. The first process of each machine counts in the
store; where it no longer counts, all processes of that machine are gone, or it cannot be reached. What a collective
call raises then (gloo: a closed connection) becomes one message. Where it raises nothing (NCCL waits), a thread ends
the process after a while.
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
GRACE = 15.0
"""Seconds after which a process that still waits for a dead one is ended."""
SILENT = 180.0
"""Seconds without a count after which a machine is lost; it does not count while a large JSON file is parsed."""
BROKEN = 4.0
"""The same after a collective call has failed."""
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


def machine() -> str:
    """Name of this machine, and what tells it from another one (or a container) of the same name."""
    try:
        number = os.stat("/proc/self/ns/pid").st_ino, os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()} {number[0]}.{number[1]}"


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
        own = machine()
        store.set(f"peer/{rank}", json.dumps([own, os.getpid()]))
        machines: dict[str, list[int]] = {}
        for other in range(size):
            host, number = self._meet(other)
            machines.setdefault(host, []).append(other)
            if other != rank and host == own:
                self._local[other] = (number, _handle_of(number))
        self.machines, self._beat = machines, 0
        self._counts = rank == machines[own][0]
        watched = machines.items() if rank == 0 else list(machines.items())[:1]  # all others look at rank 0's
        self._heard = {h: ("", time.monotonic()) for h, _ in watched if h != own}
        self._thread = threading.Thread(target=self._watch, daemon=True, name="peers")
        self._thread.start()

    def _meet(self, other: int) -> tuple[str, int]:
        """Machine and number of another process, as soon as it has started."""
        try:
            host, number = json.loads(self._store.get(f"peer/{other}"))
        except RuntimeError as error:
            raise ProcessLostError(
                f"process {self.rank} stops because process {other} of {self.size} did not join the run "
                f"({str(error).splitlines()[0]})",
                fix="see its first message; all processes must be started, and reach each other over the network",
            ) from error
        return host, number

    def fail(self, error: BaseException | str) -> None:
        """Leave the reason why this process ends; the first reason of all processes counts."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            text = str(error).partition("\n  fix: ")[0]  # which that process prints
        self._leave(f"process {self.rank} of {self.size} (pid {os.getpid()}) ended: {text}")
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(2 * PERIOD)  # the store ends with this process; the others look once more

    def _leave(self, text: str) -> None:
        with suppress(RuntimeError):  # the store is gone with the process that held it
            self._store.compare_set(FAILED, "", text)

    def tell(self, key: str, text: str) -> None:
        """Leave a text for the other processes."""
        self._store.set(f"told/{key}", text)

    def told(self, key: str) -> str | None:
        """The text that a process left under ``key``; None: none did so far. Raises RuntimeError: the store is gone."""
        return str(self._store.get(f"told/{key}").decode()) if self._store.check([f"told/{key}"]) else None

    def reason(self, silent: float = SILENT) -> str:
        """Why another process ended; empty as far as none is known to have.

        Args:
            silent: seconds without a count after which a machine is lost.
        """
        if not self._known:
            self._known = self._look(silent)
        return self._known

    def _look(self, silent: float) -> str:
        try:
            if self._store.check([FAILED]):
                return str(self._store.get(FAILED).decode())
            gone = self._gone() or self._unheard(silent)
        except RuntimeError:
            end = time.monotonic() + PERIOD  # a killed process loses its connections before its end can be seen
            while not (gone := self._gone()) and time.monotonic() < end:
                time.sleep(0.02)
            keeper = "" if len(self.machines) == 1 else f", or its machine {os.environ.get('MASTER_ADDR', '')}"
            return gone or f"the process that keeps the store of the run{keeper} is gone"
        if gone:
            self._leave(gone)
        return gone

    def _unheard(self, silent: float) -> str:
        """What is known of a machine that has not counted for ``silent`` seconds."""
        now = time.monotonic()
        for host, (last, since) in self._heard.items():
            count = self._store.get(f"beat/{host}").decode() if self._store.check([f"beat/{host}"]) else ""
            if count != last:
                self._heard[host] = (count, now)
            elif now - since > silent:
                ranks = ", ".join(map(str, self.machines[host]))
                many = "processes" if len(self.machines[host]) > 1 else "process"
                return (
                    f"{many} {ranks} of {self.size} on machine {host.partition(' ')[0]} gave no sign for "
                    f"{now - since:.0f} s: killed, or the machine or its network is down"
                )
        return ""

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
        while not (reason := self.reason(BROKEN)) and time.monotonic() < end:
            time.sleep(0.1)
        return self._error(reason) if reason else None

    def _error(self, reason: str) -> ProcessLostError:
        fix = "see the first failure; run.resume=auto continues a training run"
        return ProcessLostError(f"process {self.rank} stops because {reason}", fix=fix)

    def note(self, name: str, text: str) -> None:
        """Leave a text of this process for the others, in place of an earlier one."""
        with suppress(RuntimeError):  # the next look says that the store is gone
            self.tell(f"{name}/{self.rank}", text)

    def notes(self, name: str) -> dict[int, str]:
        """What the processes noted under that name, by rank; without those that noted nothing."""
        with suppress(RuntimeError):
            found = {rank: self.told(f"{name}/{rank}") for rank in range(self.size)}
            return {rank: text for rank, text in found.items() if text is not None}
        return {}

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join(timeout=PERIOD)

    def _count(self) -> None:
        if self._counts and len(self.machines) > 1:
            self._beat += 1
            with suppress(RuntimeError):  # the next look says that the store is gone
                self._store.set(f"beat/{machine()}", str(self._beat))

    def _watch(self) -> None:
        while not self._ended.wait(PERIOD):
            self._count()
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
