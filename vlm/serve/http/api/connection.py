"""Responses that end when their client goes away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from vlm.common.errors import UserError
from vlm.serve.http.api.server import Answers
from vlm.serve.http.errors import api_error, error_body

log = logging.getLogger(__name__)

T = TypeVar("T")

GONE = 499
"""Status in the log of a request whose client went away."""


class Gone(Exception):
    """The client went away."""


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away. Raises Gone then."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def answer_to(request: Request, make: Callable[[], Awaitable[Response]]) -> Response:
    """What ``make`` gives, or an empty response for a client that went away meanwhile."""
    try:
        return await while_connected(request.receive, make())
    except Gone:
        return Response(status_code=GONE)


class EventStream(Response):
    """Server-sent events: ``data: {...}`` for each of ``events``, then ``data: [DONE]``.

    An error among them becomes an event with an OpenAI error object, the last before ``[DONE]``. When the client goes
    away, or all is sent, the answers are closed.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[dict[str, Any], None], answers: Answers) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._answers = events, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        with self._answers:
            try:
                await while_connected(receive, self._send(send))
            except (Gone, OSError):
                log.debug("a client went away in the middle of a stream")

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await _write(send, event)
        except UserError as error:
            await _write(send, error_body(api_error(error)))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def _write(send: Send, event: dict[str, Any]) -> None:
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    body = b"data: " + text.encode("utf-8", "backslashreplace") + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})
