"""A program at a pseudo-terminal: what somebody types, and what is shown."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
import traceback
import warnings
from collections.abc import Callable, Mapping

import torch

WITHIN = 20.0
"""Seconds until something is shown; machines of continuous integration are slow at times."""
ESCAPES = re.compile(rb"\x1b\[[\d;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]|\x07")


class PseudoTerminal:
    """``program()`` in a child process whose standard streams are a terminal of 100 columns and 1000 x 800 pixels."""

    def __init__(self, program: Callable[[], int], environ: Mapping[str, str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of the test process do nothing in the child
            self.pid, self.number = pty.fork()
        if self.pid == 0:
            _run(program, environ)
        fcntl.ioctl(self.number, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 1000, 800))
        self.shown = b""
        self._at = 0

    def type(self, keys: str | bytes) -> None:
        """Press keys."""
        os.write(self.number, keys.encode() if isinstance(keys, str) else keys)

    def until(self, text: str | bytes, within: float = WITHIN) -> bytes:
        """What is shown from the last call on, up to and with ``text``."""
        wanted = text.encode() if isinstance(text, str) else text
        end = time.monotonic() + within
        while (found := self.shown.find(wanted, self._at)) < 0:
            left = end - time.monotonic()
            assert left > 0, f"{wanted!r} was not shown: {self.shown[self._at :]!r}"
            if select.select([self.number], [], [], left)[0]:
                try:
                    self.shown += os.read(self.number, 65536)
                except OSError:  # the program has ended
                    raise AssertionError(f"{wanted!r} was not shown: {self.shown[self._at :]!r}") from None
        start, self._at = self._at, found + len(wanted)
        return self.shown[start : self._at]

    def end(self) -> int:
        """Wait for the end; the exit code."""
        end = time.monotonic() + WITHIN
        while time.monotonic() < end:
            if select.select([self.number], [], [], 0.01)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self.number, 65536)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"it did not end: {self.shown[self._at :]!r}")

    def close(self) -> None:
        """End the program if it has not."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.number)


def plain(shown: bytes) -> str:
    """What is shown, without colours and keys, with line feeds alone."""
    return ESCAPES.sub(b"", shown).decode("utf-8", "replace").replace("\r\n", "\n")


def _run(program: Callable[[], int], environ: Mapping[str, str]) -> None:
    """The child's side; never returns into the test."""
    torch.set_num_threads(1)  # the threads that the parent computed with do not exist in the child
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in ("KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "TMUX", "NO_COLOR", "INPUTRC"):
            os.environ.pop(name, None)
        os.environ.update({"TERM": "xterm", **environ})
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0, "r"), os.fdopen(1, "w"), os.fdopen(2, "w")
        code = program()
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - shown on the terminal; the child must not go on with the tests
        traceback.print_exc()
    finally:
        os._exit(code)
