"""The one way out of a command that ran as several processes.

gloo's worker threads outlive ``destroy_process_group``. They may drop the last reference to a Python-owned tensor while
the interpreter shuts down; taking the interpreter's lock then ends the thread by unwinding through a destructor that
must not throw, and the process aborts (SIGABRT) after all its work is done. Nothing in Python can join these threads,
so such a process runs its exit handlers, writes everything out, and leaves by ``os._exit``, past the shutdown.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback

from vlm.common.logging import say
from vlm.common.processes.peers import LOST, Peers

_TALKING = ("distributed", "nn/parallel", "autograd")
_others: list[Peers | None] = []


def mark_several(peers: Peers | None = None) -> None:
    """Note that this process joined others, which are told how it ends."""
    _others[:] = [peers]


def leave(code: int, error: BaseException | None = None) -> int:
    """End the process if it joined others, else return ``code``.

    Exit handlers run (temporary folders, loader workers, trackers, coverage), log files and streams are written out.

    Args:
        code: exit code.
        error: what is being raised: printed as the interpreter would, and decides the exit code; what a collective
            call raises because another process is gone is one message, an error of another place is printed before it.
    """
    if not _others:
        return code
    peers = _others[0]
    lost = peers.lost() if peers is not None and isinstance(error, RuntimeError) else None
    if error is not None and lost is not None:
        if not _is_of_torch(error):
            sys.excepthook(type(error), error, error.__traceback__)
        say(f"error: {lost}", sys.stderr)
        code = LOST
    elif isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    if peers is not None and code:
        peers.fail(error or f"exit code {code}, see its message")
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a closed pipe
            continue
    os._exit(code)


def _is_of_torch(error: BaseException) -> bool:
    """Whether an error was raised where torch talks to the other processes (in the backward pass: anywhere in it)."""
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or any(f"/torch/{part}/" in frames[-1].filename.replace(os.sep, "/") for part in _TALKING)
