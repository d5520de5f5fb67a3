"""The hostile set at full size: large bodies, many slow clients, and thousands of damaged requests."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("fastapi")

from vlm.inference.engine import Engine
from vlm.serve.http.keys import Keys
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models
from vlm.serve.http.server import Assembled

from .hostile import asking
from .http_server import small_engine
from .raw_http import connect, post, rest, serving, status, until
from .test_http_hostile import CHAT, KEY, Log, memory, refused

pytestmark = pytest.mark.heavy

LIMITS = Limits(body_mib=32, stall_seconds=3, connections=100)
LARGE = 100 << 20
AUTHORISED = f"Authorization: Bearer {KEY}"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return small_engine()


@pytest.fixture
def port(engine: Engine) -> Iterator[int]:
    log = Log()
    loggers = [logging.getLogger(name) for name in ("vlm", "uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(log)
    with serving(Assembled(Models({"small": engine}), LIMITS, Keys({KEY: "somebody"})), LIMITS) as found:
        yield found
        assert ask(found).status_code == 200
    for logger in loggers:
        logger.removeHandler(log)
    assert "Traceback" not in "\n".join(log.lines)


def ask(port: int) -> httpx.Response:
    return httpx.post(
        f"http://127.0.0.1:{port}{CHAT}", json=asking(), headers={"Authorization": f"Bearer {KEY}"}, timeout=30
    )


@pytest.mark.parametrize("is_known", [True, False])
def test_bodies_of_100_megabytes(port: int, is_known: bool) -> None:
    """With and without a length, with and without a key: a status that the client can read, and little memory."""

    def parts() -> Iterator[bytes]:
        for _ in range(LARGE >> 16):
            yield bytes(1 << 16)

    before = memory(reset=True)
    for key, code in ((KEY, 413), ("another-key-123456", 401)):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        if is_known:
            headers["Content-Length"] = str(LARGE)
        refused(httpx.post(f"http://127.0.0.1:{port}{CHAT}", content=parts(), headers=headers, timeout=60), code)
    assert memory() - before < 150


def test_many_large_bodies_share_a_budget(port: int) -> None:
    """30 clients that keep 30 MiB each: the server holds 16 bodies of the largest size and refuses the rest."""
    before = memory(reset=True)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(30)]
        chunk = bytes(1 << 20)
        for client in clients:
            client.sendall(post(b"", CHAT, AUTHORISED, length=31 << 20))
        for _ in range(30):
            for client in clients:
                with contextlib.suppress(OSError):
                    client.sendall(chunk)
        found = [status(rest(client)) for client in clients]
    assert found.count(503) >= 10 and set(found) <= {503, 408, None}
    assert memory() - before < 16 * 32 * 2  # a body, and its copy as text while it is parsed
    assert ask(port).status_code == 200


def test_slow_clients_do_not_keep_others_out(port: int) -> None:
    """300 connections that send a byte now and then, on a server that takes 100: whoever has a request is answered."""
    with contextlib.ExitStack() as stack:
        slow: list[socket.socket] = []
        for k in range(300):
            client = stack.enter_context(connect(port))
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nX-"[: 5 + k % 20])
            slow.append(client)
            if k % 50 == 49:
                assert ask(port).status_code == 200
        for _ in range(10):
            for client in slow:
                with contextlib.suppress(OSError):
                    client.sendall(b"a")
            assert ask(port).status_code == 200
            time.sleep(0.5)
        ended = 0
        for client in slow:
            client.settimeout(5)
            with contextlib.suppress(OSError):
                ended += status(rest(client)) in (None, 400, 408)
        assert ended >= 290


def test_streams_that_nobody_reads(port: int, engine: Engine) -> None:
    body = httpx.Request("POST", "http://a", json=asking(stream=True, n=8, max_tokens=200, temperature=1.5)).content
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            client = stack.enter_context(connect(port, receive_buffer=2048))
            client.sendall(post(body, CHAT, AUTHORISED))
        time.sleep(1)
        assert ask(port).status_code == 200
        until(lambda: engine.stats().running == engine.stats().waiting == 0, seconds=60)


def test_damaged_requests(port: int) -> None:
    """Bytes changed, left out, doubled and exchanged anywhere in valid requests."""
    random_ = random.Random(0)
    body = httpx.Request("POST", "http://a", json=asking()).content
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    valid = [
        post(body, CHAT, AUTHORISED),
        post(chunked, CHAT, AUTHORISED, "Transfer-Encoding: chunked"),
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\n" + AUTHORISED.encode() + b"\r\n\r\n",
        post(body, CHAT, AUTHORISED).replace(b"Connection: close\r\n", b"") * 2,
    ]
    statuses = set()
    for _ in range(2000):
        data = bytearray(random_.choice(valid))
        for _ in range(random_.randint(1, 4)):
            place, what = random_.randrange(len(data)), random_.randrange(5)
            if what == 0:
                data[place] = random_.randrange(256)
            elif what == 1:
                del data[place : place + random_.randint(1, 20)]
            elif what == 2:
                data[place:place] = data[place : place + random_.randint(1, 50)]
            elif what == 3:
                data[place:place] = random_.choice([b"\r\n", b"\r\n\r\n", b"\0", b":", b"\xff" * 9, b"0\r\n", b" "])
            else:
                data[place:] = random_.choice(valid)
        with connect(port) as client, contextlib.suppress(ConnectionError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            statuses.add(status(rest(client)))
    assert all(code is None or code < 500 for code in statuses), statuses
    assert {400, 401} <= statuses
