"""What the terminal is, and what it can do."""

from __future__ import annotations

import os
import sys


def is_interactive() -> bool:
    """Whether somebody types and reads: neither side is a pipe or a file."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def dim(text: str) -> str:
    """``text`` in a faint colour where the terminal has colours and the user wants them (``NO_COLOR``)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def size_in_pixels() -> tuple[int, int] | None:
    """Width and height of the terminal in pixels, where it tells them."""
    try:
        import fcntl
        import struct
        import termios
    except ImportError:  # Windows
        return None
    try:
        answer = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
    except (OSError, ValueError):
        return None
    _, _, width, height = struct.unpack("HHHH", answer)
    return (width, height) if width and height else None


def attributes(timeout: float = 1.0) -> frozenset[int]:
    """The device attributes (DA1) that the terminal answers with; 4: it shows sixel images.

    Empty where it does not answer in ``timeout`` seconds, where this process is in the background, or where something
    was typed already, which would be lost.
    """
    try:
        import select
        import termios
        import tty
    except ImportError:  # Windows
        return frozenset()
    number = sys.stdin.fileno()
    try:
        if os.tcgetpgrp(number) != os.getpgrp():
            return frozenset()  # asking from the background would stop the process
        before = termios.tcgetattr(number)
    except (OSError, termios.error):
        return frozenset()
    try:
        tty.setcbreak(number, termios.TCSANOW)
        if select.select([number], [], [], 0)[0]:
            return frozenset()
        sys.stdout.write("\x1b[c")
        sys.stdout.flush()
        return _read_attributes(number, timeout)
    finally:
        termios.tcsetattr(number, termios.TCSANOW, before)


def _read_attributes(number: int, timeout: float) -> frozenset[int]:
    """What follows ``ESC [ ?`` on a terminal, up to its ``c``."""
    import re
    import select
    import time

    end = time.monotonic() + timeout
    answer = b""
    while (left := end - time.monotonic()) > 0 and len(answer) < 256:
        if not select.select([number], [], [], left)[0]:
            break
        answer += os.read(number, 1)
        if found := re.search(rb"\x1b\[\?([\d;]*)c", answer):
            return frozenset(int(n) for n in found.group(1).split(b";") if n)
    return frozenset()
