"""Log lines of rank 0 on stderr (and in a file), and the one function that commands print with."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
"""Format of log files; the terminal shows the time and the message, with the level of warnings and errors."""


class TerminalFormatter(logging.Formatter):
    """``12:34:56 text``, with the level above INFO."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without the module's name."""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{record.getMessage()}"


def setup_logging(level: int = logging.INFO, file: str | Path | None = None, rank: int | None = None) -> None:
    """Send the ``vlm`` loggers to stderr and, if given, to ``file``. Ranks other than 0 log warnings only.

    Calling it again replaces the handlers; ``rank`` defaults to torchrun's ``RANK``.
    """
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    logger = logging.getLogger("vlm")
    logger.setLevel(level if rank == 0 else max(level, logging.WARNING))
    logger.propagate = False
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    terminal = logging.StreamHandler()
    terminal.setFormatter(TerminalFormatter())
    logger.addHandler(terminal)
    if file is not None and rank == 0:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter(FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Limit these loggers to warnings, for commands that report the same themselves."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def busy(text: str) -> Iterator[None]:
    """A spinner with ``text`` and the elapsed seconds on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(text, total=None)
        yield


def say(text: str = "", stream: TextIO | None = None, end: str = "\n") -> None:
    """Print a command's output to stdout (or ``stream``) and flush it."""
    stream = stream or sys.stdout
    try:
        stream.write(text + end)
    except UnicodeEncodeError:  # half characters, or a terminal of another language
        encoding = stream.encoding or "ascii"
        stream.write((text + end).encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
