"""uvicorn's connections with what it lacks against slow and silent clients: deadlines, and a limit on their number."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlm.serve.http.limits import Limits
from vlm.serve.http.refusals import Refusal

SPARE = 16
"""Connections above ``Limits.connections``: on them :class:`vlm.serve.http.guard.Guard` answers health checks only."""
LINES = 4096
"""Line breaks in a chunked body beside one in 64 bytes; each chunk has two, and costs as much time as a large one."""


def server_options(limits: Limits) -> dict[str, Any]:
    """Arguments of ``uvicorn.Config`` that the server's safety needs.

    ``limit_concurrency`` is not among them: it would refuse health checks with the rest.
    """
    return {
        "http": protocol_class(limits),
        "ws": "none",
        "h11_max_incomplete_event_size": limits.header_kib * 1024,
        "timeout_keep_alive": max(1, int(min(limits.stall_seconds, 30))),
        "server_header": False,
        "access_log": False,
    }


def protocol_class(limits: Limits) -> type[GuardedConnection]:
    """What uvicorn makes of each connection, with the limits of this server."""

    class Connection(GuardedConnection):
        stall = limits.stall_seconds
        most = limits.connections + SPARE
        order: dict[GuardedConnection, None] = {}

    return Connection


class GuardedConnection(H11Protocol):
    """A connection that a client cannot hold without using it.

    It ends when the headers of a request take longer than ``stall`` seconds, when the client does not read for that
    long, and when a body goes on for that long after the response. A slow body before the response is refused by
    :class:`vlm.serve.http.guard.Guard`.

    Attributes:
        stall: seconds.
        order: all connections of the server, the one that has been silent longest first.
        most: open connections; for a further one the oldest that waits for a request is closed, or it is refused.
    """

    stall: float
    most: int
    order: dict[GuardedConnection, None]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.access_log = False  # it would hold the query strings of requests
        self._turn: tuple[object, ...] | None = None
        self._since = time.monotonic()
        self._resumed = 0
        self._lines = self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    # ---- called by asyncio and by uvicorn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it where there are too many."""
        super().connection_made(transport)
        self.order[self] = None
        if len(self.connections) > self.most and not self._make_room():
            self._refuse(Refusal(503, "too many connections are open", retry_after=1))
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is to be watched any more."""
        if self._timer is not None:
            self._timer.cancel()
        self.order.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, unless the connection was refused."""
        if self.transport.is_closing():
            return
        self.order.pop(self, None)
        self.order[self] = None
        if self._is_shredded(data):
            self._refuse(Refusal(400, "the body is divided into too many chunks"))
            return
        super().data_received(data)

    def resume_writing(self) -> None:
        """The client has read."""
        self._resumed += 1
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; uvicorn's own would raise where a response has begun already."""
        self._refuse(Refusal(400, "not a valid HTTP request, or its headers are too large"))

    # ---- what is watched

    def _look(self) -> None:
        """Cut the client off if it has been its turn, in one and the same way, for ``stall`` seconds."""
        now, turn = time.monotonic(), self._clients_turn()
        if turn != self._turn:
            self._turn, self._since = turn, now
        elif turn is not None and now - self._since >= self.stall:
            if turn[0] == "ask" and self.conn.trailing_data[0]:
                self._refuse(Refusal(408, f"the headers took longer than {self.stall:g} seconds"))
            else:
                self.transport.abort()
        self._timer = self.loop.call_later(self.stall / 4, self._look)

    def _clients_turn(self) -> tuple[object, ...] | None:
        """What the client has to do next, with its progress; None: nothing."""
        over = self.cycle is None or self.cycle.response_complete
        unread = self.transport.get_write_buffer_size()
        if unread and (over or self.flow.write_paused):
            return "read", self._resumed, unread >> 14
        if over and self.conn.their_state is h11.IDLE:
            return "ask", self.cycle
        if over and self.conn.their_state is h11.SEND_BODY:
            return "end", self.cycle
        return None

    def _is_shredded(self, data: bytes) -> bool:
        """Whether a chunked body has so many chunks that reading them would hold up everybody else."""
        waiting = self.conn.their_state is h11.IDLE
        if waiting:
            self._lines = self._bytes = 0
        self._lines += data.count(b"\r\n")
        self._bytes += len(data)
        if self._lines <= LINES + self._bytes // 64:
            return False
        return b"chunked" in data.lower() if waiting else any(name == b"transfer-encoding" for name, _ in self.headers)

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for the headers of a request; whether there was one."""
        oldest = next((c for c in self.order if c is not self and c.is_waiting), None)
        if oldest is None:
            return False
        self.order.pop(oldest)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    @property
    def is_waiting(self) -> bool:
        """Whether there is no request on the connection."""
        return not self.transport.is_closing() and (self._clients_turn() or ("",))[0] == "ask"

    def _refuse(self, refusal: Refusal) -> None:
        """Answer if nothing was answered yet, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            self.transport.write(refusal.raw())
        if self.cycle is not None:
            self.cycle.disconnected = True  # what it writes from now on is dropped
            self.cycle.message_event.set()
        self.transport.close()
