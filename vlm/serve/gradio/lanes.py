"""Answers of several models to one question, written at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

from vlm.inference.streaming import extend

if TYPE_CHECKING:
    from vlm.inference.generation import Generation
    from vlm.inference.session import ChatSession

PAUSE = 0.04
"""Seconds between two updates of the page while answers are written."""


class Lane:
    """The answer of one session to its open question, written by a thread of its own.

    Attributes:
        text: what there is of it.
        error: what ended it, if anything did.
        is_over: nothing follows.
    """

    def __init__(self, session: ChatSession, generation: Generation) -> None:
        self.session = session
        self.generation = generation
        self.text = ""
        self.error: BaseException | None = None
        self.is_over = False
        self._is_wanted = True

    def write(self, changed: threading.Event) -> None:
        """Write to the end, or until it is stopped; ``changed`` is set whenever there is more."""
        with closing(self.session.stream(self.generation)) as stream:
            for piece in stream:
                self.text = extend(self.text, piece)
                changed.set()
                if not self._is_wanted:
                    break

    def end(self, written: Future[None]) -> None:
        """Take note of how the thread ended."""
        self.error = written.exception()
        self.is_over = True

    def stop(self) -> None:
        """End it after the token that is being written."""
        self._is_wanted = False
        self.session.stop()


def write_together(lanes: Sequence[Lane]) -> Generator[None, None, None]:
    """Write all answers; yields when there is something new to show. Closing it ends them."""
    changed = threading.Event()
    with ThreadPoolExecutor(len(lanes), "answer") as threads:
        for lane in lanes:
            written = threads.submit(lane.write, changed)
            written.add_done_callback(lane.end)
            written.add_done_callback(lambda _: changed.set())
        try:
            while not all(lane.is_over for lane in lanes):
                changed.wait()
                changed.clear()
                yield
                time.sleep(PAUSE)
        finally:
            for lane in lanes:
                if not lane.is_over:
                    lane.stop()
