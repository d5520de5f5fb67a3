"""The hostile set: refused with 4xx, within bounded time and memory; nothing leaks; the server goes on."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from vlm.inference.engine import Engine
from vlm.serve.http.fetch import Fetcher
from vlm.serve.http.keys import Keys
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models
from vlm.serve.http.server import Assembled

from .hostile import ACCEPTED, ADDRESSES, BODIES, IMAGES, VIDEOS, WORDS, asking, image, video
from .http_server import IMAGE, data_url, small_engine
from .net import PUBLIC, Net, response
from .raw_http import serving, until

LIMITS = Limits(body_mib=8, medium_mib=2, megapixels=16, stall_seconds=3, connections=20, seconds=20)
KEY = "a-key-of-somebody-1234"
CHAT = "/v1/chat/completions"
ROOT = Path(__file__).parents[2]
MEMORY = 700
"""MiB that one request may need at most, for a server whose images have up to 16 million pixels."""


class Log(logging.Handler):
    """All lines of all loggers, formatted."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.formatter = logging.Formatter("%(name)s %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return small_engine()


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    keys, fetcher = Keys({KEY: "somebody"}), Fetcher(["images.example.org"], LIMITS)
    with serving(Assembled(Models({"small": engine}), LIMITS, keys, fetcher), LIMITS) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with httpx.Client(base_url=address, headers=headers, timeout=20) as found:
        assert found.post(CHAT, json=asking()).status_code == 200
        yield found


@pytest.fixture(autouse=True)
def nothing_leaks(client: httpx.Client, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """After each test: a normal answer, no word of the request in a log, bounded memory."""
    log, names = Log(), (None, "vlm", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")
    levels = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).addHandler(log)
        logging.getLogger(name).setLevel(logging.DEBUG)
    before = memory(reset=True)
    yield
    after = memory()
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).removeHandler(log)
        logging.getLogger(name).setLevel(level)
    shown = "\n".join(line for line in log.lines if not line.startswith(("httpcore", "httpx", "PIL")))
    shown += "".join(capfd.readouterr())
    for word in (KEY, WORDS, "Traceback", "base64,", "/etc/passwd", str(ROOT)):
        assert word not in shown, shown[-2000:]
    assert not re.search(r"[A-Za-z0-9+/]{60,}", shown), shown[-2000:]
    assert after - before < MEMORY, f"{after - before} MiB"
    assert client.post(CHAT, json=asking(image(data_url(IMAGE)))).status_code == 200


def memory(reset: bool = False) -> int:
    """The most memory in MiB that this process has had, since the last reset; 0 where the system doesn't say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(found[1]) >> 10 if found else 0


def refused(response: httpx.Response, *codes: int) -> str:
    """An OpenAI error object of few words that tells nothing of this machine."""
    assert response.status_code in codes or (not codes and 400 <= response.status_code < 500), response.text[:500]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and len(response.content) < 4000
    for word in (str(ROOT), str(Path.home()), "site-packages", "Traceback", ".py", WORDS, KEY, "root:"):
        assert word not in response.text
    return str(error["message"])


def send(client: httpx.Client, body: Any) -> httpx.Response:
    return client.post(CHAT, content=body) if isinstance(body, bytes) else client.post(CHAT, json=body)


def test_images(client: httpx.Client) -> None:
    for name, data in IMAGES.items():
        said = refused(send(client, asking(image(data_url(data)))))
        assert said, name


def test_videos(client: httpx.Client) -> None:
    for name, data in VIDEOS.items():
        said = refused(send(client, asking(video(data_url(data, "video/mp4")))))
        assert said, name


@pytest.mark.parametrize("kind", [image, video])
def test_addresses(client: httpx.Client, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["10.0.0.1"]

    monkeypatch.setattr("vlm.serve.http.fetch.resolve", resolve)
    for url in ADDRESSES:
        said = refused(send(client, asking(kind(url))))
        assert "passwd" not in said, url
    assert not asked
    private = refused(send(client, asking(kind("https://images.example.org/a.png"))), 400)
    assert "cannot be fetched" in private and "10.0" not in private and asked == ["images.example.org"]


def test_remote_images(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is fetched; and redirects, a name whose address changes, and a bomb."""
    net, host = Net(), "images.example.org"
    monkeypatch.setattr("vlm.serve.http.fetch.resolve", net.resolve)
    monkeypatch.setattr("vlm.serve.http.fetch.connect", net.connect)
    net.pages = {
        "/good": [response(IMAGE.read_bytes())],
        "/bomb": [response(IMAGES["a png of 50,000 x 50,000 in 1 KB"])],
        "/page": [response(kind="text/html")],
        "/large": [response(bytes(3 << 20))],
        "/in": [response(b"", 302, "text/html", "Location: http://127.0.0.1/latest/meta-data")],
        "/file": [response(b"", 302, "text/html", "Location: file:///etc/passwd")],
    }
    net.answers[host] = [[PUBLIC]] * 7 + [["127.0.0.1"]]
    assert send(client, asking(image(f"https://{host}/good"))).status_code == 200
    for path in ("bomb", "page", "large", "in", "file"):
        refused(send(client, asking(image(f"https://{host}/{path}"))), 400)
    assert send(client, asking(image(f"https://{host}/good"))).status_code == 200
    refused(send(client, asking(image(f"https://{host}/good"))), 400)
    assert {address for address, _, _ in net.connected} == {PUBLIC} and len(net.connected) == 7


def test_paths_in_every_other_field(client: httpx.Client) -> None:
    """A string is a text wherever it is: none is opened."""
    for text in (
        "/etc/hostname",
        "file:///etc/hostname",
        str(IMAGE),
        "<Img>/etc/hostname</Img>",
        "data:image/png;base64,AA",
    ):
        for body in (
            {"messages": [{"role": "user", "content": text}]},
            {"messages": [{"role": "system", "content": text}, {"role": "user", "content": text}]},
            asking(model=text),
            asking(user=text),
            asking(stop=text),
            asking(image(data_url(IMAGE)), detail=text),
        ):
            response = send(client, body | {"max_tokens": 2})
            assert response.status_code < 500
            host = Path("/etc/hostname")
            assert not host.exists() or host.read_text().strip() not in response.text


def test_bodies(client: httpx.Client) -> None:
    for name, body in BODIES.items():
        try:
            refused(send(client, body()))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def test_odd_bodies(client: httpx.Client) -> None:
    for name, body in ACCEPTED.items():
        assert send(client, body()).status_code in (200, 400), name


def test_other_endpoints(client: httpx.Client) -> None:
    for path in ("/v1/completions", "/tokenize", "/detokenize"):
        for body in (b"[" * 100_000, b"null", b'{"prompt": [' + b'"",' * 50_000 + b'""]}', b'{"tokens": ["a"]}'):
            refused(client.post(path, content=body))
    refused(client.post("/v1/completions", json={"prompt": [[-1, 10**18]]}))
    refused(client.post("/v1/completions", json={"prompt": "a", "logprobs": 10**6}))
    refused(client.post("/detokenize", json={"tokens": [2**63]}))
    for path in (
        "/v1/models/..%2f..%2fetc%2fgroup",
        "/v1/models/" + "a-" * 2500,
        "/../etc/group",
        "/static/x",
        "/.env",
    ):
        refused(client.get(path), 404)
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "GET"):
        refused(client.request(method, CHAT), 405)
    assert client.request("OPTIONS", CHAT).status_code == 405
    for kind in ("text/plain", "text/html", "multipart/form-data; boundary=a", "application/xml", ""):
        refused(client.post(CHAT, content=b"{}", headers={"Content-Type": kind}), 415)
    refused(client.post(CHAT, content=b"\x1f\x8b\x08", headers={"Content-Encoding": "gzip"}), 415)


def test_without_a_key_nothing_is_read(address: str) -> None:
    for headers in ({}, {"Authorization": "Bearer another-key-12345678"}, {"Authorization": KEY}, {"x-api-key": KEY}):
        with httpx.Client(base_url=address, headers={"Content-Type": "application/json", **headers}) as stranger:
            refused(stranger.post(CHAT, content=b"x" * (9 << 20)), 401)
            refused(stranger.get(f"/v1/models?api_key={KEY}"), 401)


def test_a_stream_that_nobody_reads_to_the_end(client: httpx.Client, engine: Engine) -> None:
    body = asking(stream=True, n=4, max_tokens=200, temperature=1.5)
    for _ in range(3):
        with client.stream("POST", CHAT, json=body) as found:
            next(found.iter_lines())
    until(lambda: engine.stats().running == engine.stats().waiting == 0)
