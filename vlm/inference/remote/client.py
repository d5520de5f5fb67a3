"""Requests to a vLLM server: a plain HTTP/1.1 client, one connection per answer, which closing cancels."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from vlm.common.errors import BusyError, UserError

CONNECT_SECONDS = 10.0
START = "vllm serve LLM_FOLDER --enable-prompt-embeds --host 127.0.0.1 --port 8100"


class RemoteError(UserError):
    """A vLLM server that cannot be reached, or that refused or broke off an answer."""


class Server:
    """A vLLM server.

    Attributes:
        address: where it is.
        model: the name of its model; known after :meth:`find_model`.
        positions: the longest sequence it takes (``--max-model-len``), if it says so.
        patience: seconds without a word from it that are waited.
    """

    def __init__(
        self, address: str, model: str | None = None, api_key: str | None = None, patience: float = 300.0
    ) -> None:
        """Raises UserError: not an ``http(s)`` address."""
        parts = urlsplit(address if "://" in address else f"http://{address}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise UserError(f"{address!r} is not the address of a server", fix="e.g. http://127.0.0.1:8100")
        self.address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._parts = urlsplit(self.address)
        self.model, self.positions, self.patience = model or "", None, patience
        self._key = api_key

    positions: int | None

    def find_model(self) -> None:
        """Ask which models there are. Raises RemoteError: no server, or not the named model; UserError: several."""
        cards = self.call("GET", "/v1/models").get("data") or []
        known = {str(card["id"]): card for card in cards if isinstance(card, dict) and "id" in card}
        if not self.model and len(known) != 1:
            raise UserError(f"{self.address} serves {', '.join(known) or 'no model'}", fix="name one of them")
        self.model = self.model or next(iter(known))
        if self.model not in known:
            raise RemoteError(f"{self.address} has no model {self.model!r} (it has {', '.join(known) or 'none'})")
        length = known[self.model].get("max_model_len")
        self.positions = length if isinstance(length, int) else None

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer to a short request. Raises RemoteError, BusyError: see :class:`Events`."""
        with Events(self, CONNECT_SECONDS) as events:
            events.ask(method, path, body)
            return events.whole()

    def connection(self) -> http.client.HTTPConnection:
        """A new connection, which is opened by its first request."""
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        host = self._parts.hostname or ""
        return kind(host, self._parts.port, timeout=CONNECT_SECONDS)

    def target(self, path: str) -> str:
        """The path of a request below the server's own."""
        return self._parts.path + path

    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        return {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **key}


class Events:
    """One request and what comes back; ``close`` may be called from any thread and ends it, there too.

    Raises RemoteError: no server, a refusal (with the server's own words), or an answer that breaks off; BusyError: the
    server has too much to do (429, 503).
    """

    def __init__(self, server: Server, patience: float) -> None:
        """``patience``: seconds without a byte that are waited."""
        self._server, self._patience = server, patience
        self._closed = False
        self._connection = server.connection()
        self._socket: socket.socket | None = None
        self._response: Any = None

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, deadline: float | None = None) -> None:
        """Send the request, and wait for the first line of what comes back. Raises TimeoutError after ``deadline``."""
        data = None if body is None else json.dumps(body).encode()

        def sent() -> bytes:
            self._connection.connect()
            self._socket = self._connection.sock
            if self._closed:  # before there was a socket to close
                raise OSError("closed")
            self._wait_until(deadline)
            self._connection.request(method, self._server.target(path), data, self._server.headers())
            self._response = self._connection.getresponse()
            return b""

        self._read(sent, deadline)
        if self._response.status >= 400:
            raise self._refusal(path)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; vLLM stops writing an answer that nobody reads."""
        self._closed = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def whole(self) -> dict[str, Any]:
        """The body, an object."""
        return self._object(self._read(self._response.read))

    def until(self, deadline: float | None) -> Iterator[dict[str, Any]]:
        """The objects of a stream of server-sent events, to its end. Raises TimeoutError after ``deadline``."""
        while True:
            self._wait_until(deadline)
            line = self._read(self._response.readline, deadline)
            if not line:
                raise RemoteError(
                    f"{self._server.address} broke off an answer", fix="look at the log of vLLM; ask again"
                )
            name, _, value = line.strip().partition(b":")
            if name != b"data":  # a blank line, or a comment that keeps the connection alive
                continue
            if value.strip() == b"[DONE]":
                return
            found = self._object(value)
            if "error" in found:
                raise RemoteError(f"{self._server.address}: {_message(found)}")
            yield found

    def _wait_until(self, deadline: float | None) -> None:
        left = self._patience if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self._socket is not None:
            with suppress(OSError):  # closed meanwhile; reading says so
                self._socket.settimeout(min(left, self._patience))

    def _read(self, read: Any, deadline: float | None = None) -> bytes:
        try:
            return bytes(read())
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError) and deadline is not None and time.monotonic() >= deadline:
                raise
            if isinstance(error, ValueError | AttributeError) and not self._closed:
                raise  # http.client reads from what another thread has closed
            raise self._unreachable(error) from error

    def _object(self, data: bytes) -> dict[str, Any]:
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RemoteError(f"{self._server.address} answers with {data[:60]!r}, not as vLLM does")
        return found

    def _refusal(self, path: str) -> UserError:
        status, headers = self._response.status, self._response.headers
        data = self._read(self._response.read)
        try:
            text = _message(json.loads(data))
        except ValueError:
            text = data[:200].decode("utf-8", "replace")
        said = f"{self._server.address}{path} answers {status}: {text or self._response.reason}"
        if status in (429, 503):
            wait = headers.get("Retry-After", "")
            return BusyError(said, retry_after=float(wait) if wait.isdigit() else 1.0)
        return RemoteError(said, fix="start it with the key that it was given" if status == 401 else None)

    def _unreachable(self, error: BaseException) -> RemoteError:
        if isinstance(error, TimeoutError):
            return RemoteError(f"{self._server.address} has said nothing for {self._patience:.0f} seconds")
        return RemoteError(f"no vLLM server at {self._server.address} ({error or type(error).__name__})", fix=START)


def _message(found: Any) -> str:
    """What an error object of the OpenAI form says."""
    error = found.get("error", found) if isinstance(found, dict) else found
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
