"""A watchdog over the steps of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence


class Watchdog:
    """Reports, from a thread of its own, the phase of a step that does not end in time.

    Args:
        seconds: after which it reports; 0: never.
    """

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    @contextlib.contextmanager
    def watching(self, step: int, phase: str, samples: Sequence[str] = ()) -> Iterator[None]:
        """Within the block, step ``step`` of this process is in ``phase``, working on ``samples``."""
        yield
