"""The server put together: what a drain finds under way, tenants side by side, and the page behind the same checks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from vlm.inference.engine import Engine
from vlm.serve.http.api import server as api_server
from vlm.serve.http.api.turns import FairThreads
from vlm.serve.http.app import create_app
from vlm.serve.http.guard import LOOPBACK_NAMES
from vlm.serve.http.keys import Keys
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models
from vlm.serve.http.server import Assembled

from ..runners.lynx_small import moving_square
from .http_server import data_url, small_engine
from .raw_http import connect, post, raw, rest, serving, status, until

QUESTION = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return small_engine()


def ask(app: Any, body: dict[str, Any], path: str = "/v1/chat/completions") -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post(path, json=body)

    return asyncio.run(send())


def test_a_body_under_way_when_the_drain_begins_is_answered(engine: Engine) -> None:
    app = Assembled(Models({"small": engine}), Limits(), Keys(), access_log=False)
    whole = post(json.dumps(QUESTION).encode(), "/v1/chat/completions")
    with serving(app, Limits()) as port, connect(port) as client:
        client.sendall(whole[:-20])
        until(lambda: app.drain.running == 1)
        app.drain.models.is_draining = True
        assert status(raw(port, whole)) == 503
        client.sendall(whole[-20:])
        assert status(rest(client)) == 200


def test_health_is_also_asked_for_with_head(engine: Engine) -> None:
    app = Assembled(Models({"small": engine}), Limits(), Keys(), access_log=False)
    with serving(app, Limits()) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert [client.head(path).status_code for path in ("/health", "/ready", "/nothing")] == [200, 200, 404]


def test_a_video_of_too_many_frames_is_refused_before_it_is_decoded(engine: Engine, tmp_path: Path) -> None:
    url = data_url(moving_square(tmp_path / "a.mp4", (255, 0, 0), frames=60), "video/mp4")
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What?"}]
    body = {**QUESTION, "messages": [{"role": "user", "content": content}]}
    models = Models({"small": engine})
    refused = ask(create_app(models, Limits(frames=59)), body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "the video has 60 frames, allowed are 59"
    assert refused.json()["error"]["param"] == "messages.0.content.0.video_url.url"
    assert ask(create_app(models, Limits(frames=60)), body).status_code == 200


def test_what_one_request_has_fetched_takes_bounded_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        async def fetch(self, *_: Any) -> bytes:
            await asyncio.sleep(0.1)
            return b"no image"

    monkeypatch.setattr(api_server, "FETCHING", 0.25)
    parts = [{"type": "image_url", "image_url": {"url": f"https://a.example/{k}.png"}} for k in range(16)]
    body = {"messages": [{"role": "user", "content": parts}]}
    found = ask(create_app(Models({"small": engine}), fetcher=Slow()), body)
    assert (found.status_code, "within 0.25 seconds" in found.text) == (400, True)


# ---- tenants


def test_threads_are_handed_to_tenants_in_turn() -> None:
    done: list[str] = []

    async def run() -> None:
        threads, gate = FairThreads(1, "fair"), threading.Event()
        first = asyncio.create_task(threads.run("busy", gate.wait))
        await asyncio.sleep(0)
        many = [asyncio.create_task(threads.run("busy", lambda: done.append("busy"))) for _ in range(5)]
        await asyncio.sleep(0)
        many[0].cancel()
        other = asyncio.create_task(threads.run("other", lambda: done.append("other")))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, other, *many, return_exceptions=True)
        assert await asyncio.wait_for(threads.run("busy", lambda: 7), 5) == 7

    asyncio.run(run())
    assert sorted(done) == ["busy"] * 4 + ["other"]
    assert done.index("other") <= 1


def test_no_tenant_fills_the_queue_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[int]:
        app = create_app(Models({"small": engine}), Limits(waiting=4), tenants=2)
        server_of = {"alice": _as("alice", app), "bob": _as("bob", app)}
        go = threading.Event()
        encode = engine.processor.encode_chat

        def slow(*args: Any, **more: Any) -> Any:
            go.wait()
            return encode(*args, **more)

        monkeypatch.setattr(engine.processor, "encode_chat", slow)
        clients = {
            name: httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://localhost", timeout=60)
            for name, inner in server_of.items()
        }
        path = "/v1/chat/completions"
        # as many as the threads take, and half of the queue
        mine = [
            asyncio.create_task(clients["alice"].post(path, json=QUESTION)) for _ in range(api_server.PREPARING + 2)
        ]
        await asyncio.sleep(0.5)
        refused = await clients["alice"].post(path, json=QUESTION)
        theirs = asyncio.create_task(clients["bob"].post(path, json=QUESTION))
        await asyncio.sleep(0.1)
        go.set()
        answered = [response.status_code for response in await asyncio.gather(*mine, theirs)]
        again = await clients["alice"].post(path, json=QUESTION)  # nothing is counted for ever
        return [refused.status_code, *answered, again.status_code]

    assert asyncio.run(run()) == [429, *[200] * (api_server.PREPARING + 4)]


def _as(tenant: str, app: Any) -> Any:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {"tenant": tenant}}, receive, send)

    return inner


# ---- the page


@pytest.fixture(scope="module")
def with_page(engine: Engine) -> Iterator[int]:
    pytest.importorskip("gradio")
    limits = Limits(stall_seconds=0.5)
    hosts = [*LOOPBACK_NAMES, "chat.example.org"]
    app = Assembled(Models({"small": engine}), limits, Keys(), hosts=hosts, page_host="127.0.0.1", access_log=False)
    with serving(app, limits) as port:
        yield port


@pytest.mark.heavy
@pytest.mark.parametrize(("host", "expected"), [("evil.example", 421), ("chat.example.org", 200), ("localhost", 200)])
def test_the_page_answers_to_the_names_of_the_server(with_page: int, host: str, expected: int) -> None:
    for path in ("/", "/v1/models"):
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert status(raw(with_page, request.encode())) == expected


@pytest.mark.heavy
def test_an_upload_that_stalls_ends(with_page: int) -> None:
    head = "POST /gradio_api/{} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\nContent-Length: 1000\r\n\r\n"
    for path, kind in (("upload", "multipart/form-data; boundary=x"), ("queue/join", "application/json")):
        with connect(with_page) as client, contextlib.suppress(ConnectionError):
            client.sendall(head.format(path, kind).encode() + b"--x\r\n")
            began = time.monotonic()
            rest(client)
            assert time.monotonic() - began < 8
