"""Locks that end with the process that holds them, however it ends; on a shared folder too (NFS 3 or later)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from vlm.common.errors import UserError
from vlm.common.paths import make_folder

POLL = 0.2
"""Seconds between two looks at a lock that another process holds."""
PROBED = 0.02
"""Seconds for which :func:`is_held` of another process may hold a lock at most."""


class FileLock:
    """A lock that belongs to an open file: a child process that gets the object holds it as well.

    It is free when all processes that have it ended or released it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; whether it was. Raises UserError: the file system gives no lock."""
        make_folder(self.file.parent)
        handle = -1
        try:
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            for pause in (PROBED, 0.0):
                if _locked(handle):
                    self._handle = handle
                    return True
                time.sleep(pause)
        except OSError as error:
            raise UserError(
                f"{self.file}: cannot be locked ({error.strerror})",
                fix="let `output` of the study be on a file system that can be written and has file locks",
            ) from error
        finally:
            if self._handle is None and handle >= 0:
                os.close(handle)
        return False

    def wait(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Take the lock once it is free; False if ``stopping()`` was true before."""
        while not self.acquire():
            if stopping():
                return False
            time.sleep(POLL)
        return True

    def release(self) -> None:
        """Give it up in this process."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @property
    def handle(self) -> int:
        """The open file, for a program that is started and holds the lock too."""
        assert self._handle is not None, "not acquired"
        return self._handle

    def __getstate__(self) -> tuple[Path, Any]:
        return self.file, None if self._handle is None else reduction.DupFd(self._handle)

    def __setstate__(self, state: tuple[Path, Any]) -> None:
        self.file, passed = state
        self._handle = None if passed is None else passed.detach()


def is_held(file: Path) -> bool:
    """Whether a process holds the lock at this moment."""
    try:
        handle = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # no such file, or not ours to open
        return False
    try:
        return not _locked(handle)
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold a lock for a block; waits for it."""
    lock = FileLock(file)
    lock.wait()
    try:
        yield
    finally:
        lock.release()


def _locked(handle: int) -> bool:
    import fcntl  # no such module on Windows

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
