"""An orderly end: on the first signal no further request is accepted, and what was accepted is finished."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from vlm.serve.http.guard import LINGER
from vlm.serve.http.models import Models
from vlm.serve.http.ops import ROUTES
from vlm.serve.http.refusals import Refusal

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
GRACE = 0.5
"""Seconds after the last answer in which further requests still get their 503, and not a closed port."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
ENDLESS = "/heartbeat/"
"""In the path of a request of the chat page that lasts as long as its tab is open."""
STOPPING = Refusal(503, "this server is stopping; ask another one, or this one again later", "draining", 2)


class Drain:
    """ASGI middleware that counts the requests in progress and refuses others while the server drains.

    Attributes:
        running: requests that were accepted and whose answer is not complete.
    """

    def __init__(self, app: Any, models: Models) -> None:
        self.app = app
        self.models = models
        self.running = 0
        self._endless: set[asyncio.Future[Any]] = set()
        self._has_finished = False

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 503."""
        if scope["type"] != "http" or scope["path"] in ROUTES:
            await self.app(scope, receive, send)
            return
        if ENDLESS in scope["path"]:
            await self._until_the_end(scope, receive, send)
            return
        if self.models.is_draining:
            await _refuse(receive, send)
            return

        async def closing(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and self.models.is_draining:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        self.running += 1
        try:
            await self.app(scope, receive, closing)
        finally:
            self.running -= 1

    async def _until_the_end(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass on a request that nobody waits for when the server ends."""
        is_open = False

        async def seen(message: MutableMapping[str, Any]) -> None:
            nonlocal is_open
            await send(message)
            is_open = message["type"] == "http.response.start" or message.get("more_body", False)

        answer = asyncio.ensure_future(self.app(scope, receive, seen))
        self._endless.add(answer)
        try:
            await answer
        except asyncio.CancelledError:
            answer.cancel()
            if not self._has_finished:
                raise
            if is_open:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._endless.discard(answer)

    async def finish(self, seconds: float) -> int:
        """Refuse further requests and wait up to ``seconds`` for those in progress; the number of unfinished ones."""
        self.models.is_draining = True
        end = time.monotonic() + seconds
        log.info("draining: %d requests in progress, further ones get 503", self.running)
        while self.running and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await asyncio.sleep(max(0.0, min(GRACE, end - time.monotonic())))
        self._has_finished = True
        for answer in self._endless:
            answer.cancel()
        if self.running:
            log.warning("%d requests were not finished within %g s", self.running, seconds)
        return self.running


async def _refuse(receive: Callable[[], Any], send: Callable[[dict[str, Any]], Any]) -> None:
    """Answer, and throw away what the client still sends: one that writes would miss the answer."""
    start, body, end = STOPPING.messages()
    await send(start)
    await send(body)

    async def rest() -> None:
        message: MutableMapping[str, Any] = {"more_body": True}
        while message.get("more_body", False):
            message = await receive()

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(rest(), LINGER)
    await send(end)


@contextmanager
def first_signal(begin: Callable[[], None]) -> Iterator[None]:
    """Within the block, which a loop runs, the first SIGTERM or SIGINT calls ``begin``; a second ends the process."""
    loop = asyncio.get_running_loop()

    def first(number: int, _: Any) -> None:
        for each in SIGNALS:
            signal.signal(each, _end)
        log.info("%s: a second one ends the server at once", signal.Signals(number).name)
        loop.call_soon_threadsafe(begin)

    before = {each: signal.signal(each, first) for each in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
