"""Log lines of rank 0 on stderr (and in a file), and the one helper for what a command prints."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TextIO

FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


def setup_logging(level: int = logging.INFO, file: str | Path | None = None, rank: int | None = None) -> None:
    """Send the ``vlm`` loggers to stderr and, if given, to ``file``. Other ranks than 0 only say warnings.

    Calling it again replaces the handlers; ``rank`` defaults to torchrun's ``RANK``.
    """
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    logger = logging.getLogger("vlm")
    logger.setLevel(level if rank == 0 else max(level, logging.WARNING))
    logger.propagate = False
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file is not None and rank == 0:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
        logger.addHandler(handler)


def say(text: str = "", stream: TextIO | None = None, end: str = "\n") -> None:
    """Write what a command has to say to stdout (or ``stream``) at once."""
    stream = stream or sys.stdout
    stream.write(text + end)
    stream.flush()
