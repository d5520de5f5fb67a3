"""What is refused, and how: OpenAI error objects, with the field at fault and without anything of this machine."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from vlm.common.errors import BusyError, DataError, NotFiniteError
from vlm.inference.batching.answer import Answer
from vlm.inference.batching.stats import Stats
from vlm.inference.engine import Engine
from vlm.serve.http.app import create_app
from vlm.serve.http.errors import api_error, error_body
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models

from .http_server import IMAGE, data_url, image_part, small_engine

CHAT = "/v1/chat/completions"
QUESTION = {"role": "user", "content": "What is it?"}
SHORT: dict[str, Any] = {"temperature": 0, "max_tokens": 4}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return small_engine()


@pytest.fixture(scope="module")
def post(engine: Engine) -> Callable[..., httpx.Response]:
    """``post(path, body)``: one request to an app; further arguments are those of ``create_app``, or the models."""

    plain = create_app(Models({"small": engine}))

    def send(path: str, body: Any = None, limits: Limits | None = None, models: Models | None = None, **options: Any):  # type: ignore[no-untyped-def]
        special = models or limits or options
        app = create_app(models or Models({"small": engine}), limits, **options) if special else plain

        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                if isinstance(body, bytes):
                    return await client.post(path, content=body, headers={"Content-Type": "application/json"})
                found = await (client.get(path) if body is None else client.post(path, json=body))
                await asyncio.sleep(0.1 if options.get("observer") else 0)
                return found

        return asyncio.run(run())

    return send


def asking(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}], **SHORT, **fields}


def part(url: str, kind: str = "image_url") -> dict[str, Any]:
    return {"type": kind, kind: {"url": url}}


def refused(response: httpx.Response, status: int, *texts: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(text in error["message"] for text in texts), error["message"]
    assert "Traceback" not in response.text and "/work" not in response.text and "site-packages" not in response.text
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages.0.content.0"),
        (asking({"type": "image_url", "image_url": "cat.png"}), "messages.0.content.0.image_url"),
        (asking({"type": "image_url", "image_url": {"url": 3}}), "messages.0.content.0.image_url.url"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [QUESTION, {"role": "system", "content": "x"}, QUESTION]}, "messages.1.role"),
        ({"messages": [{"role": "system", "content": [image_part(IMAGE)]}, QUESTION]}, "messages.0.content"),
        ({"n": "2"}, "n"),
        ({"n": 3}, "n"),
        ({"n": 0}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"3": 1}}, "logit_bias"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object"}, "min_tokens": 3}, "min_tokens"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
            "response_format",
        ),
    ],
)
def test_fields(post: Callable[..., httpx.Response], change: dict[str, Any], param: str) -> None:
    error = refused(post(CHAT, {"messages": [QUESTION], **SHORT, **change}, Limits(choices=2)), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_bodies(post: Callable[..., httpx.Response]) -> None:
    refused(post(CHAT, b'{"messages": '), 400, "not valid JSON")
    refused(post(CHAT, b"[" * 100_000), 400)
    refused(post(CHAT, b"\xff\xfe"), 400)
    refused(post(CHAT, b"3"), 400)
    refused(post("/v1/completions", {"prompt": ""}), 400, "empty")
    refused(post("/v1/completions", {"prompt": []}), 400)
    refused(post("/v1/completions", {"prompt": [[]]}), 400, "empty")
    refused(post("/v1/completions", {"prompt": [5, 10**9]}), 400, "1000000000 is not a token")
    refused(post("/v1/completions", {"prompt": "x <ImageHere>"}), 400, "1 image placeholders but 0 media")
    refused(post("/v1/completions", {"prompt": "x", "echo": True}), 400, "echo")
    refused(post("/v1/completions", {"prompt": "x", "suffix": "y"}), 400, "suffix")
    refused(post("/v1/completions", {"prompt": ["x"] * 200}), 400, "128")
    refused(post("/tokenize", {"prompt": "x", "messages": [QUESTION]}), 400, "either")
    refused(post("/tokenize", {}), 400, "either")
    refused(post("/detokenize", {"tokens": [-3]}), 400, "-3")
    refused(post(CHAT), 405)
    refused(post("/v2/anything"), 404)
    assert post("/docs").status_code == post("/redoc").status_code == 404


def test_harmless_fields_are_ignored(post: Callable[..., httpx.Response]) -> None:
    more = {"user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "tools": [], "made_up": 1}
    body = {"messages": [{**QUESTION, "name": "me"}], **SHORT, **more, "tool_choice": "none", "presence_penalty": 0}
    assert post(CHAT, body).status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(str(IMAGE), id="path"),
        pytest.param(IMAGE.as_uri(), id="uri"),
        "file:///etc/passwd",
        "../../../etc/passwd",
        "~/.ssh/id_rsa",
        "ftp://host/cat.png",
        "gopher://host/",
        "https://host/cat.png",
        "HTTP://169.254.169.254/latest",
        "",
        "data:",
        "data:image/png,rawbytes",
        "data:image/png;base64,!!!",
        "data:image/png;base64,",
        "data:text/html;base64,PGh0bWw+",
        "data:video/mp4;base64,AAAA",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/png;base64," + "A" * 100,
    ],
)
def test_addresses_that_are_not_images(post: Callable[..., httpx.Response], url: str) -> None:
    error = refused(post(CHAT, asking(part(url))), 400)
    assert error["param"] == "messages.0.content.0.image_url.url"
    assert "passwd" not in error["message"] and "ssh" not in error["message"]
    refused(post(CHAT, asking(part(url.replace("data:image", "data:x"), "video_url"))), 400)


def bomb(width: int, height: int) -> bytes:
    """A PNG of about a hundred bytes that declares a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_limits_of_images(post: Callable[..., httpx.Response]) -> None:
    refused(post(CHAT, asking(image_part(bomb(50_000, 50_000)))), 400, "2500000000 pixels")
    refused(post(CHAT, asking(image_part(bomb(2000, 2000))), Limits(megapixels=3)), 400, "2000 x 2000 pixels")
    refused(post(CHAT, asking(image_part(bomb(2000, 1)))), 400, "corrupt or truncated")
    shown = image_part(IMAGE)
    refused(post(CHAT, asking(shown, shown, shown), Limits(images=2)), 400, "3 images and videos, allowed are 2")
    two_turns = [{"role": "user", "content": [shown, shown]}, {"role": "assistant", "content": "a"}]
    refused(post(CHAT, {"messages": [*two_turns, asking(shown)["messages"][0]]}, Limits(images=2)), 400)
    large = data_url(b"\x89PNG\r\n\x1a\n" + bytes(3 << 20))
    error = refused(post(CHAT, asking(part(large)), Limits(medium_mib=1)), 413, "larger than 1 MiB")
    assert error["code"] == "medium_too_large"
    refused(
        post(CHAT, asking(part(data_url(b"#EXTM3U\nfile:///etc/passwd", "video/mp4"), "video_url"))), 400, "playlist"
    )


def test_remote_addresses_go_through_the_fetcher(post: Callable[..., httpx.Response]) -> None:
    class Fetcher:
        asked: list[str] = []

        async def fetch(self, url: str, kind: str | None = None, most: int | None = None) -> bytes:
            assert kind == "image" and most is not None and most <= 32 << 20
            self.asked.append(url)
            if "private" in url:
                raise DataError("this host is not allowed")
            return IMAGE.read_bytes()

    fetcher, url = Fetcher(), "https://host/a.png"
    whole = post(CHAT, asking(part(url), part(url), {"type": "text", "text": "What?"}), fetcher=fetcher)
    own = post(CHAT, asking(image_part(IMAGE), image_part(IMAGE), {"type": "text", "text": "What?"}))
    assert whole.json()["choices"] == own.json()["choices"] and fetcher.asked == [url]
    error = refused(post(CHAT, asking(part("https://private/a.png")), fetcher=fetcher), 400, "not allowed")
    assert error["param"] == "messages.0.content.0.image_url.url"
    refused(post(CHAT, asking(part(str(IMAGE))), fetcher=fetcher), 400, "files are not read")
    assert len(fetcher.asked) == 2


def test_context(post: Callable[..., httpx.Response]) -> None:
    turns = [QUESTION, {"role": "assistant", "content": "word " * 300}, QUESTION]
    error = refused(post(CHAT, {"messages": turns, **SHORT}), 400, "positions")
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
    kept = post(CHAT, {"messages": turns, **SHORT, "truncation": "auto"})
    assert kept.json()["choices"] == post(CHAT, {"messages": [QUESTION], **SHORT}).json()["choices"]
    refused(post("/v1/completions", {"prompt": "word " * 400}), 400, "positions")
    for body in ({"prompt": "word " * 10**6}, {"prompt": [5] * 10**6}):  # before they are tokenised
        refused(post("/v1/completions", body), 400, "do not fit into 320 positions")
    many = {"messages": [{"role": "user", "content": [{"type": "text", "text": "word " * 10**6}]}]}
    refused(post(CHAT, many), 400, "do not fit into 320 positions")
    refused(post(CHAT, {**many, "truncation": "auto"}), 400, "do not fit into 1,280 positions")
    refused(post("/tokenize", many), 400, "do not fit into 1,280 positions")


def test_long_lists_are_refused_at_the_first_fault(post: Callable[..., httpx.Response]) -> None:
    for name, value in (("messages", [1] * 200_000), ("stop", [1] * 200_000), ("modalities", [1] * 200_000)):
        assert refused(post(CHAT, {"messages": [QUESTION], name: value}), 400)["param"] == f"{name}.0"
    refused(post("/v1/completions", {"prompt": [[""]] * 200_000}), 400, "prompt")
    bias = {str(k): "x" for k in range(100_000)}  # not looked at: an error of pydantic for each would take 2 s
    refused(post(CHAT, {"messages": [QUESTION], "logit_bias": bias}), 400, "logit_bias is not supported")
    refused(post(CHAT, {"messages": [QUESTION] * 5000}), 400, "at most 4096")


def test_busy_and_loading(post: Callable[..., httpx.Response], engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"messages": [QUESTION], **SHORT, "n": 2}
    refused(post(CHAT, body, models=Models()), 503)
    submit, answers = engine.submit, []

    def second_is_too_many(*args: Any, **kwargs: Any) -> Answer:
        if answers:
            raise BusyError("the queue is full", retry_after=2.5)
        answers.append(submit(*args, **kwargs))
        return answers[0]

    with monkeypatch.context() as patch:
        patch.setattr(engine, "submit", second_is_too_many)
        response = post(CHAT, body)
    error = refused(response, 429, "the queue is full")
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert response.headers["Retry-After"] == "3" and (answers[0].is_over or not answers[0].is_wanted)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "stats", lambda: Stats(waiting=7))
        assert post(CHAT, body, Limits(waiting=7)).status_code == 429
        assert post(CHAT, body, Limits(waiting=8)).status_code == 200


def test_time_is_over(post: Callable[..., httpx.Response], engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    late = post(CHAT, {"messages": [QUESTION], **SHORT}, Limits(seconds=1e-6))
    assert refused(late, 503)["code"] == "timeout"
    submit = engine.submit

    def ends_in_time(*args: Any, **kwargs: Any) -> Answer:
        answer = submit(*args, **kwargs)
        push = answer.push

        def two(token: int, logprob: Any = None) -> bool:
            if len(answer.ids) == 2:
                answer.end("timeout")
            return answer.is_over or push(token, logprob)

        answer.push = two  # type: ignore[method-assign]
        return answer

    monkeypatch.setattr(engine, "submit", ends_in_time)
    found = post(CHAT, {"messages": [QUESTION], **SHORT}).json()
    assert found["choices"][0]["finish_reason"] == "length" and found["usage"]["completion_tokens"] == 2


def test_observer_is_told_of_each_answer(post: Callable[..., httpx.Response]) -> None:
    class Observer:
        seen: list[tuple[str, str, str | None]] = []

        def answered(self, model: str, tenant: str, answer: Answer) -> None:
            self.seen.append((model, tenant, answer.finish))

    for stream in (False, True):
        post(CHAT, {"messages": [QUESTION], **SHORT, "n": 2, "stream": stream}, observer=Observer())
    assert Observer.seen == [("small", "", "length")] * 4


def test_messages_tell_nothing_of_the_machine() -> None:
    told = error_body(api_error(DataError("image /srv/data/secret/cat.png: gone, see https://host/a/b and image/png")))
    assert told["error"]["message"] == "image ...: gone, see https://host/a/b and image/png"
    for error in (RuntimeError("/srv/x"), NotFiniteError("bridge.0 of /srv/x/y")):
        assert "srv" not in error_body(api_error(error))["error"]["message"] and api_error(error).status == 500


def test_description_of_the_api(post: Callable[..., httpx.Response]) -> None:
    found = post("/openapi.json").json()
    operations = [(path, o) for path, methods in found["paths"].items() for o in methods.values()]
    assert len(operations) == 6
    for path, operation in operations:
        assert "422" not in operation["responses"] and {"200", "400", "429", "503"} <= set(operation["responses"]), path
    assert Path(__file__).name not in str(found) and "422" not in str(found["components"])
