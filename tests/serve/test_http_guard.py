"""The guard and the connections below it, around an application that only echoes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from vlm.serve.http.connections import SPARE
from vlm.serve.http.guard import Guard
from vlm.serve.http.keys import Keys
from vlm.serve.http.limits import Limits

from .raw_http import connect, post, raw, rest, serving, status, until

LIMITS = Limits(body_mib=1, stall_seconds=0.8, connections=4, header_kib=32, seconds=5)
ALICE, BOB = "a-key-of-alice-1234", "a-key-of-bob-123456"
KEYS = Keys({ALICE: "alice", BOB: "bob"})
GET = b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Echo:
    """Answers with what it was given; ``/wait`` waits, ``/stream`` never ends.

    Attributes:
        reached: paths of requests that came through.
        cancelled: how many of them had no client any more.
    """

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.bodies: list[int] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.cancelled = 0
        self.release = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope["path"])
        self.headers += scope["headers"]
        body = (await receive())["body"]
        self.bodies.append(len(body))
        work, leaving = asyncio.ensure_future(self.answer(scope, body, send)), asyncio.ensure_future(receive())
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            assert leaving.result() == {"type": "http.disconnect"}
            self.cancelled += 1
            work.cancel()
        leaving.cancel()

    async def answer(self, scope: Any, body: bytes, send: Any) -> None:
        while scope["path"] == "/wait" and not self.release.is_set():
            await asyncio.sleep(0.01)
        said = json.dumps({"tenant": scope["state"]["tenant"], "bytes": len(body)}).encode()
        headers = [] if scope["path"] == "/stream" else [(b"content-length", str(len(said)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while scope["path"] == "/stream":
            await send({"type": "http.response.body", "body": b"." * 10_000, "more_body": True})
            await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": said})


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, tuple[int, Echo]]]:
    """Port and application, without keys and with them."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, keys, hosts in (("open", None, ()), ("keys", KEYS, ()), ("named", None, ("localhost", "::1"))):
            echo = Echo()
            found[name] = (stack.enter_context(serving(Guard(echo, LIMITS, keys, hosts), LIMITS)), echo)
        yield found


@pytest.fixture
def port(servers: dict[str, tuple[int, Echo]]) -> int:
    return servers["open"][0]


@pytest.fixture
def echo(servers: dict[str, tuple[int, Echo]]) -> Echo:
    found = servers["open"][1]
    found.release.clear()
    found.cancelled = 0
    return found


def answer(response: bytes) -> dict[str, Any]:
    """The JSON of a response."""
    return json.loads(response.partition(b"\r\n\r\n")[2])


def error(response: bytes, code: int) -> str:
    """The message of an OpenAI error object; the connection is closed after it."""
    assert status(response) == code, response[:300]
    assert b"connection: close" in response.lower()
    found = answer(response)["error"]
    assert set(found) == {"message", "type", "param", "code"} and found["message"]
    return found["message"]


def keyed(key: str | None, path: str = "/echo") -> bytes:
    return post(b"{}", path, *([f"Authorization: Bearer {key}"] if key else []))


# ---- who asks


def test_a_body_arrives_whole(port: int) -> None:
    assert answer(raw(port, post(b"x" * 1_000_000))) == {"tenant": "", "bytes": 1_000_000}


def test_keys_and_tenants(servers: dict[str, tuple[int, Echo]]) -> None:
    port, echo = servers["keys"]
    assert answer(raw(port, keyed(ALICE)))["tenant"] == "alice"
    assert answer(raw(port, keyed(BOB)))["tenant"] == "bob"
    assert b"authorization" not in dict(echo.headers)  # nothing below can log it
    reached = len(echo.reached)
    for bad in (None, "another-key-1234567", ALICE.upper(), ALICE + " "[:0] + "x"):
        response = raw(port, keyed(bad))
        error(response, 401)
        assert b"www-authenticate: Bearer" in response and (bad or "\0").encode() not in response
    two = post(b"{}", "/echo", f"Authorization: Bearer {ALICE}", f"Authorization: Bearer {BOB}")
    error(raw(port, two), 401)
    error(raw(port, keyed(None, "/v1/models")), 401)
    error(raw(port, keyed(None, "/healthx")), 401)
    error(raw(port, keyed(None, "/health/../echo")), 401)
    assert len(echo.reached) == reached
    for path in ("/health", "/ready", "/metrics"):  # the last because the client is on this machine
        assert status(raw(port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())) == 200


@pytest.mark.parametrize(
    ("client", "keys", "header", "code"),
    [
        (("127.0.0.1", 1), KEYS, "x-forwarded-for", 401),
        (None, Keys(), "forwarded", 403),
        (("127.0.0.1", 1), Keys(), "", 200),
        (("::1", 1), KEYS, "", 200),
        (("::ffff:127.0.0.1", 1), KEYS, "", 200),
        (None, KEYS, "", 200),
        (("192.168.1.7", 1), Keys(), "", 403),
        (("192.168.1.7", 1), KEYS, "", 401),
        (("not an address", 1), KEYS, "", 401),
        (("192.168.1.7", 1), KEYS, "authorization", 200),
    ],
)
def test_who_may_read_the_metrics(client: Any, keys: Keys, header: str, code: int) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(header.encode(), f"Bearer {BOB}".encode())] if header else []
    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": headers, "client": client}
    asyncio.run(Guard(Echo(), LIMITS, keys)(scope, receive, send))
    assert sent[0]["status"] == code


def test_host_names(servers: dict[str, tuple[int, Echo]]) -> None:
    port, _ = servers["named"]
    for host, code in (("localhost:80", 200), ("[::1]:80", 200), ("LOCALHOST", 200), ("evil.example.org", 421)):
        request = f"GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        assert status(raw(port, request)) == code
    assert status(raw(port, b"GET /echo HTTP/1.0\r\n\r\n")) == 421


# ---- what is asked


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (post(b"", length=2 << 20), 413),
        (post(b"x" * (3 << 20)), 413),
        (post(b"", length=10**19), 413),
        (post(b"", length=10**30), 400),
        (post(b"1" * 10, "/echo", "Content-Length: 5", length=10), 400),
        (post(b"", "/echo", "Content-Length: -1", length=0), 400),
        (post(b"", "/echo", "Content-Encoding: gzip"), 415),
        (post(b"", "/echo", "Content-Type: text/plain"), 415),
        (post(b"", "/echo", "Content-Type: application/x-www-form-urlencoded"), 415),
        (GET.replace(b"Host: x", b"Host: x\r\n" + b"\r\n".join(b"X-%d: a" % k for k in range(1000))), 431),
        (GET.replace(b"Host: x", b"Host: x\r\nX: " + b"a" * (1 << 20)), 400),
        (b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n", 400),
        (GET.replace(b"GET", b"DELETE"), 405),
        (GET.replace(b"GET", b"TRACE"), 405),
        (b"CONNECT evil.example.org:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (GET.replace(b"Host: x\r\n", b""), 400),
        (GET.replace(b"Host: x", b"Host: x\r\nHost: y"), 400),
        (GET.replace(b"Host: x", b"Host: x\r\n folded: y"), 200),
        (b"GET /echo\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
        (b"GET /echo HTTP/1.1\nHost: x\r\x00\n\r\n\r\n", 400),
        (post(b"zz\r\n", "/echo", "Transfer-Encoding: chunked"), 400),
        (post(b"5\r\nhello\r\n0\r\n\r\n", "/echo", "Transfer-Encoding: chunked", "Content-Length: 5"), 400),
        (post(b"5\r\nhello\r\n0\r\n\r\n", "/echo", "Transfer-Encoding: gzip, chunked"), 400),
        (post(b"5\r\nhello\r\n0\r\n\r\n", "/echo", "Transfer-Encoding: chunked"), 200),
        (post(b"1\r\na\r\n" * 100_000, "/echo", "Transfer-Encoding: chunked"), 400),
        (b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n", 200),
    ],
)
def test_requests_that_are_refused(port: int, request_bytes: bytes, code: int) -> None:
    response = raw(port, request_bytes)
    if code == 200:
        assert status(response) == 200
    else:
        error(response, code)


def test_a_body_without_an_end(port: int, echo: Echo) -> None:
    before = len(echo.reached)
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    with connect(port) as client:
        client.sendall(post(b"", "/echo", "Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            for _ in range(5000):
                client.sendall(chunk)
        response = rest(client)
    assert status(response) in (413, 408, None)  # 408: too slow on a busy machine
    assert len(echo.reached) == before


def test_what_follows_garbage(port: int) -> None:
    response = raw(port, GET.replace(b"close", b"keep-alive") + b"garbage\r\n\r\n")
    assert status(response) == 200 and b"HTTP/1.1 400" in response
    response = raw(port, GET.replace(b"close", b"keep-alive") * 3 + GET)
    assert response.count(b"HTTP/1.1 200") == 4


def test_a_websocket_is_refused() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(Echo(), LIMITS)({"type": "websocket"}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


# ---- slow clients


def test_slow_and_silent_clients(port: int, echo: Echo) -> None:
    """Side by side: nothing at all, headers byte by byte, half a body, a body byte by byte, and a connection kept."""
    before = len(echo.reached)
    with contextlib.ExitStack() as stack:
        silent, headers, half, dripping, kept = (stack.enter_context(connect(port)) for _ in range(5))
        half.sendall(post(b"{", length=100))
        dripping.sendall(post(b"{", length=100))
        kept.sendall(GET.replace(b"close", b"keep-alive"))
        for byte in GET[:30]:
            for client, sent in ((headers, bytes([byte])), (dripping, b" ")):
                with contextlib.suppress(ConnectionError):
                    client.sendall(sent)
            time.sleep(0.04)
        assert "headers took longer" in error(rest(headers), 408)
        assert "stalled" in error(rest(half), 408)
        assert status(rest(dripping)) == 408
        assert rest(silent) == b"" and status(rest(kept)) == 200
    assert len(echo.reached) == before + 1


def test_a_client_that_does_not_read_is_cut_off(port: int, echo: Echo) -> None:
    with connect(port, receive_buffer=4096) as client:
        client.sendall(post(b"{}", "/stream"))
        until(lambda: echo.cancelled == 1)
        client.settimeout(5)
        assert len(rest(client)) < 50 << 20


def test_a_client_that_goes_away(port: int, echo: Echo) -> None:
    for path in ("/wait", "/stream"):
        with connect(port) as client:
            client.sendall(post(b"{}", path))
            until(lambda path=path: path in echo.reached)
        until(lambda: echo.cancelled == 1)
        echo.cancelled = 0


# ---- many clients


def test_too_many_requests_leave_room_for_health(port: int, echo: Echo) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(LIMITS.connections)]
        before = echo.reached.count("/wait")
        for client in clients:
            client.sendall(post(b"{}", "/wait"))
        until(lambda: echo.reached.count("/wait") == before + len(clients))
        response = raw(port, post(b"{}"))
        error(response, 503)
        assert b"retry-after: 1" in response
        assert status(raw(port, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) == 200
        echo.release.set()
        assert all(status(rest(client)) == 200 for client in clients)
    assert status(raw(port, post(b"{}"))) == 200


def test_a_tenant_leaves_room_for_others(servers: dict[str, tuple[int, Echo]]) -> None:
    port, echo = servers["keys"]
    echo.release.clear()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(LIMITS.connections // 2)]
        for client in clients:
            client.sendall(keyed(ALICE, "/wait"))
        until(lambda: echo.reached.count("/wait") == len(clients))
        error(raw(port, keyed(ALICE)), 429)
        assert status(raw(port, keyed(BOB))) == 200
        echo.release.set()
        assert all(status(rest(client)) == 200 for client in clients)


def test_idle_connections_make_room(port: int) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(port)) for _ in range(LIMITS.connections + SPARE)]
        idle[0].sendall(b"GET /echo HT")
        time.sleep(0.05)
        assert [status(raw(port, GET)) for _ in range(3)] == [200] * 3


def test_busy_connections_do_not(port: int, echo: Echo) -> None:
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(port)) for _ in range(LIMITS.connections + SPARE)]
        for client in busy:
            client.sendall(post(b"{}", "/wait") if client in busy[: LIMITS.connections] else post(b"{", length=9))
        time.sleep(0.1)
        response = raw(port, b"")
        error(response, 503)
        assert b"retry-after: 1" in response
        echo.release.set()


def test_bodies_share_a_budget(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm.serve.http.guard.BODIES", 1)
    with connect(port) as first:
        first.sendall(post(b"x" * 900_000, length=1_000_000))
        time.sleep(0.1)
        error(raw(port, post(b"x" * 500_000)), 503)
        first.sendall(b"x" * 100_000)
        assert status(rest(first)) == 200
    assert status(raw(port, post(b"x" * 500_000))) == 200


def test_nothing_was_logged_but_warnings_without_content(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        raw(port, post(b'{"secret": 1}', "/echo?secret=1", f"Authorization: Bearer {ALICE}"))
        raw(port, b"secret garbage\r\n\r\n")
        raw(port, post(b"secret zz\r\n", "/echo", "Transfer-Encoding: chunked"))
        raw(port, b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: secret\r\nConnection: Upgrade, close\r\n\r\n")
    assert "secret" not in caplog.text and ALICE not in caplog.text and "Traceback" not in caplog.text
