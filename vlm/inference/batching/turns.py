"""Which thread computes, and the media that wait to be encoded.

One thread at a time takes the steps: two that compute at once would share the cores, and each has threads of its own to
wake. It is whoever waits for an answer. As soon as a second thread waits, and for those who wait without a thread
(``async for``, a server), one in the background takes them; it ends when nothing is left to do.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm.common.types import Features
from vlm.inference.batching.answer import Answer
from vlm.inference.batching.row import Noted
from vlm.models.precision import no_autocast
from vlm.models.vlm import VLM

CHECK = 0.05
"""Seconds after which a waiting thread looks again, should nobody have woken it."""
BETWEEN = 0.05
"""Seconds of encoding between two steps, but for media that take longer."""
PAIR = 2
"""Images that are encoded together however long it takes, which is less than one after the other."""
LONGEST = 5
"""Times that, at most, while more questions wait for their media than answers for the next step."""


class Media:
    """Pixels of one question that wait to be encoded, then their features or an error."""

    def __init__(self, pixels: Tensor, more: tuple[Any, ...]) -> None:
        """``more``: further arguments of ``VLM.encode``."""
        self.pixels = pixels
        self.more = more
        self.features: Features | None = None
        self.error: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether somebody has encoded them."""
        return self.features is not None or self.error is not None

    @property
    def frames(self) -> int:
        """Images, or frames of a video."""
        return self.pixels.shape[0] * self.pixels.shape[1]

    def joins(self, other: Media) -> bool:
        """Whether one call can encode both."""
        return not self.more and not other.more and self.pixels.shape[1:] == other.pixels.shape[1:]


class Waiter:
    """A thread that waits until ``done``; while another takes the steps it looks at ``told``, which may come later."""

    def __init__(self, done: Callable[[], bool], told: Callable[[], bool]) -> None:
        self.done = done
        self.told = told
        self.thread = threading.current_thread()
        self.event = threading.Event()


class Turns:
    """Gives one thread at a time the right to compute."""

    def __init__(self, model: VLM) -> None:
        self.model = model
        self._lock = threading.Lock()  # of the queue and of who waits
        self._steps = threading.Lock()  # held by the thread that takes steps
        self._waiters: list[Waiter] = []
        self._background: threading.Thread | None = None
        self._media: deque[Media] = deque()
        self._seconds = BETWEEN  # of a frame, a moving mean

    def _step(self) -> None:
        raise NotImplementedError

    def _is_idle(self) -> bool:
        """Whether nothing is left to do."""
        raise NotImplementedError

    def _held_up(self) -> int:
        """How many answers wait for the next step."""
        return 1

    def _left(self) -> None:
        """The last thread that waited has gone."""

    def _give_up(self, error: Exception) -> None:
        raise NotImplementedError

    # ---- who takes the steps

    def drive(self, answer: Answer, *, to_the_end: bool = False) -> None:
        """Write for all until the answer has an unread token, or with ``to_the_end`` until it is over."""
        if to_the_end:
            self._drive(lambda: answer.is_over)
        else:
            self._drive(lambda: answer.has_news, told=lambda: answer.is_told or answer.is_over)

    def _drive(
        self,
        done: Callable[[], bool],
        step: Callable[[], None] | None = None,
        told: Callable[[], bool] | None = None,
    ) -> None:
        waiter, step = Waiter(done, told or done), step or self._step
        with self._lock:
            self._waiters.append(waiter)
        try:
            while not waiter.told():
                if self._may_lead() and self._steps.acquire(blocking=False):
                    try:
                        while not done():
                            step()
                            self._wake()
                    finally:
                        self._steps.release()
                    return
                self._ask_for_help()
                waiter.event.wait(CHECK if self._background is None else 10 * CHECK)
                waiter.event.clear()
        finally:
            with self._lock:
                self._waiters.remove(waiter)
                successor = self._successor()
            if successor is not None:
                successor.event.set()
            else:
                self._left()

    def _may_lead(self) -> bool:
        thread = self._background
        return thread is None or thread is threading.current_thread() or not thread.is_alive()  # as after a fork

    def _successor(self) -> Waiter | None:
        own = (waiter for waiter in self._waiters if waiter.thread is self._background)
        return next(own, None) or next(iter(self._waiters), None)

    def _ask_for_help(self) -> None:
        if self._background is None:
            with contextlib.suppress(RuntimeError):  # no more threads: those that wait take turns
                self.in_background()

    def _wake(self) -> None:
        with self._lock:
            ready = [waiter for waiter in self._waiters if waiter.told()]
        for waiter in ready:
            waiter.event.set()

    def in_background(self) -> None:
        """Have a thread of its own write until nothing is left."""
        with self._lock:
            if self._background is not None and self._background.is_alive():
                return
            thread = threading.Thread(target=self._run, name="vlm answers", daemon=True)
            thread.start()  # may fail where a machine has no more threads; whoever asked gets the error then
            self._background = thread  # which waits for the lock

    def _run(self) -> None:
        while True:
            with Noted() as noted:
                self._drive(self._is_idle)
            if noted.error is not None:
                self._give_up(noted.error)
            with self._lock:
                if self._is_idle():
                    self._background = None
                    return

    # ---- media

    def encode(self, pixels: Tensor, *more: Any) -> Features:
        """``VLM.encode`` between two steps, with the media of other questions that wait. Raises: as that."""
        media = Media(pixels, more)
        with self._lock:
            self._media.append(media)
        self._drive(lambda: media.is_over, step=self._encode)
        if media.error is not None:
            raise media.error
        assert media.features is not None
        return media.features

    def _encode(self) -> None:
        """Encode the media that have waited longest, as many as ``BETWEEN`` allows."""
        with self._lock:
            together = [self._media.popleft()] if self._media else []
            pressed = len(self._media) / max(1, self._held_up())
            room = max(PAIR, BETWEEN * min(max(1.0, pressed), LONGEST) / self._seconds)
            while self._media and together[0].joins(self._media[0]):
                room -= together[-1].frames
                if room < self._media[0].frames:
                    break
                together.append(self._media.popleft())
        if not together:
            return
        started = time.monotonic()
        try:
            self._encode_all(together)
        finally:
            for media in together:
                if not media.is_over:
                    media.error = RuntimeError("the thread that encoded images was interrupted")
        taken = (time.monotonic() - started) / max(1, sum(media.frames for media in together))
        self._seconds = 0.5 * (self._seconds + taken)

    def _encode_all(self, together: Sequence[Media]) -> None:
        with torch.inference_mode(), no_autocast(self.model.device):
            if len(together) > 1:
                with contextlib.suppress(Exception):  # each alone, to see whose fault it was
                    self._encode_joined(together)
            for media in together:
                if media.features is None:
                    with Noted() as noted:
                        media.features = self.model.encode(media.pixels, *media.more)
                    media.error = noted.error

    def _encode_joined(self, together: Sequence[Media]) -> None:
        different: list[Media] = []
        for media in together:
            if not any(torch.equal(media.pixels, other.pixels) for other in different):
                different.append(media)
        found, first = self.model.encode(torch.cat([media.pixels for media in different])), 0
        for media in different:
            last = first + len(media.pixels)
            media.features = found.select(slice(first, last))
            first = last
        for media in together:
            if media.features is None:
                media.features = next(m.features for m in different if torch.equal(media.pixels, m.pixels))
