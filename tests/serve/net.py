"""A name server and a web server for tests of what is fetched, in place of the internet."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

PUBLIC = "93.184.216.34"
IMAGE = b"\x89PNG" + bytes(1000)


def response(body: bytes = IMAGE, status: int = 200, kind: str = "image/png", *more: str) -> bytes:
    head = [f"HTTP/1.1 {status} x", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(head).encode() + body


class Net:
    """A network of one web server, and what was asked of it and of the name server.

    Attributes:
        answers: host -> what the name server says, one answer after the other.
        pages: path -> what the web server sends, in parts.
        looked_up: hosts, in order.
        connected: (address, port, host of the certificate or None).
        requests: heads of requests.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.pages: dict[str, list[bytes]] = {}
        self.looked_up: list[str] = []
        self.connected: list[tuple[str, int, str | None]] = []
        self.requests: list[str] = []
        self.pause = 0.0
        self._server: asyncio.Server | None = None

    async def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        answers = self.answers.get(host, [[PUBLIC]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect(self, address: str, port: int, context: ssl.SSLContext | None, host: str) -> Any:
        self.connected.append((address, port, host if context is not None else None))
        if self._server is None:
            self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return await asyncio.open_connection(*self._server.sockets[0].getsockname())

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(head)
        for part in self.pages[head.split()[1]]:
            writer.write(part)
            await asyncio.sleep(self.pause)
        writer.close()
