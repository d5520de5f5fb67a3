"""A request that is refused before it reaches the API: status, headers and OpenAI's error object."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

LINGER = 2.0
"""Seconds for which the rest of a refused body is thrown away: a client that writes would miss the response."""


@dataclass(frozen=True)
class Refusal:
    """A response that says why; nothing that the client sent is repeated in it.

    Attributes:
        status: of HTTP.
        message: for the client.
        code: a word for programs.
        retry_after: seconds after which it may be asked again; None: never.
        headers: further ones, lower case.
    """

    status: int
    message: str
    code: str | None = None
    retry_after: int | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def body(self) -> bytes:
        """OpenAI's error object."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()

    @property
    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers as ASGI has them; the connection is closed, because the body may be unread."""
        items = [
            ("content-type", "application/json"),
            ("content-length", str(len(self.body))),
            ("connection", "close"),
            *self.headers,
        ]
        if self.retry_after is not None:
            items.append(("retry-after", str(self.retry_after)))
        return [(name.encode(), value.encode()) for name, value in items]

    def messages(self) -> list[dict[str, Any]]:
        """The response as ASGI messages; the end of the body is a message of its own."""
        return [
            {"type": "http.response.start", "status": self.status, "headers": self.all_headers},
            {"type": "http.response.body", "body": self.body, "more_body": True},
            {"type": "http.response.body", "body": b"", "more_body": False},
        ]

    async def answer(
        self,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
        linger: float = LINGER,
    ) -> None:
        """Answer a request of ASGI, and throw away what the client still sends, for ``linger`` seconds at most."""
        start, body, end = self.messages()
        await send(start)
        await send(body)

        async def rest() -> None:
            message: MutableMapping[str, Any] = {"more_body": True}
            while message.get("more_body", False):
                message = await receive()

        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(rest(), linger)
        await send(end)

    def raw(self) -> bytes:
        """The response as it is sent where there is no request yet."""
        head = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}".encode()]
        head += [name + b": " + value for name, value in self.all_headers]
        return b"\r\n".join([*head, b"", self.body])
