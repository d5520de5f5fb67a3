"""An application served as ``vlm serve`` does it, and clients that no library is."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from vlm.serve.http.connections import server_options
from vlm.serve.http.limits import Limits

from .http_server import running

HOST = "127.0.0.1"


@contextlib.contextmanager
def serving(app: Any, limits: Limits) -> Iterator[int]:
    """The port on which ``app`` is served with the options that ``vlm serve`` gives uvicorn."""
    with running(app, log_config=None, timeout_graceful_shutdown=1, **server_options(limits)) as address:
        yield int(address.rpartition(":")[2])


def until(is_true: Any, seconds: float = 10) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def connect(port: int, receive_buffer: int | None = None) -> socket.socket:
    """A connection; with a small buffer the server notices at once that nobody reads."""
    found = socket.socket()
    if receive_buffer is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    found.settimeout(10)
    found.connect((HOST, port))
    return found


def rest(connection: socket.socket) -> bytes:
    """What the server still sends; nothing more if it resets the connection."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            data += part
    return data


def raw(port: int, data: bytes) -> bytes:
    """Send these bytes and read until the server closes."""
    with connect(port) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        return rest(connection)


def status(response: bytes) -> int | None:
    """The status of a response; None: the connection was closed without one."""
    return int(response.split(None, 2)[1]) if response.startswith(b"HTTP/") else None


def post(body: bytes = b"", path: str = "/echo", *headers: str, length: int | None = None) -> bytes:
    """The bytes of a request whose connection ends with it."""
    head = [f"POST {path} HTTP/1.1", f"Host: {HOST}", "Connection: close", *headers]
    if not any(h.lower().startswith("content-type") for h in headers):
        head.append("Content-Type: application/json")
    if not any(h.lower().startswith("transfer-encoding") for h in headers):
        head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode() + body
