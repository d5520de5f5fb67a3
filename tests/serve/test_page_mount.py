"""The chat page as a part of another server: the same gate, and the server's own routes beside it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("gradio")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import fastapi
import uvicorn

from vlm.common.errors import UserError
from vlm.inference.engine import Engine
from vlm.serve.gradio.app import free_port
from vlm.serve.gradio.mount import mount_page

from ..inference.small import CASE, write_config

IMAGE = CASE / "image.png"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_config(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module", params=["/", "/page"])
def server(request: pytest.FixtureRequest, engine: Engine) -> Iterator[tuple[str, str]]:
    """Address of a server, and the path of the page there."""
    app = fastapi.FastAPI()

    @app.get("/v1/models")
    def models() -> list[str]:
        return ["one", "two"]

    options = {"max_new_tokens": 3, "do_sample": False}
    mount_page(app, {"one": engine, "two": engine}, request.param, generation=options, max_upload=1)
    port = free_port("127.0.0.1", None)
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}", request.param.rstrip("/")
    running.should_exit = True
    thread.join()


def test_page_and_server_share_a_process(server: tuple[str, str], tmp_path: Path) -> None:
    address, page = server
    secret = tmp_path / "secret.png"
    secret.write_bytes(IMAGE.read_bytes())
    with httpx.Client(base_url=address, timeout=30) as http:
        assert http.get("/v1/models").json() == ["one", "two"]
        start = http.get(f"{page}/")
        assert start.status_code == 200 and "img-src 'self'" in start.headers["content-security-policy"]
        assert f"Path={page or '/'};" in start.headers["set-cookie"]
        assert "content-security-policy" not in http.get("/v1/models").headers
        config = http.get(f"{page}/config").json()
        assert config["max_file_size"] == 2**20
        for path in ("/gradio_api/info", "/gradio_api/proxy=https://example.com/a", "/monitoring", "/docs"):
            assert http.get(page + path).status_code == (200 if (path, page) == ("/docs", "") else 404), path
        assert http.get(f"{page}/gradio_api/file={secret}").status_code == 404
        assert http.get(f"{page}/", headers={"host": "evil.example"}).status_code == 403
        uploaded = http.post(f"{page}/gradio_api/upload", files={"files": ("a.png", IMAGE.read_bytes())}).json()[0]
        large = http.post(f"{page}/gradio_api/upload", files={"files": ("a.png", b"0" * (2**20 + 1))})
        assert large.status_code == 413
        names = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
        ask = next(d for d in config["dependencies"] if [names.get(i) for i in d["inputs"]][:1] == ["question"])

        def put(file: str) -> httpx.Response:
            data = [{"text": "What?", "files": [{"path": file}]}, False, ["one", "two"], None]
            body = {"data": data, "fn_index": ask["id"], "session_hash": "mounted"}
            return http.post(f"{page}/gradio_api/queue/join", json=body)

        assert put(str(secret)).status_code == 400 and put(uploaded).status_code == 200
        with http.stream("GET", f"{page}/gradio_api/queue/data", params={"session_hash": "mounted"}) as stream:
            said = [json.loads(line.removeprefix("data:")) for line in stream.iter_lines() if line]
        end = next(m for m in said if m["msg"] == "process_completed")
        assert end["success"] and uploaded in json.dumps(end["output"]["data"][2:4])  # in both conversations


def test_a_page_with_a_password(engine: Engine) -> None:
    from starlette.testclient import TestClient

    app = fastapi.FastAPI()
    mount_page(app, {"one": engine}, password=lambda text: text == "the key")
    client = TestClient(app, base_url="http://127.0.0.1")
    refused = client.get("/")
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
    for wrong in (("", "other"), ("the key", "")):
        assert client.get("/config", auth=wrong).status_code == 401
    for header in ("Basic ###", "Basic", "Bearer dGhlIGtleQ==", "Basic /w=="):
        assert client.get("/config", headers={"authorization": header}).status_code == 401
    assert client.get("/config", auth=("anybody", "the key")).status_code == 200


def test_a_page_without_a_model(engine: Engine) -> None:
    with pytest.raises(UserError, match="needs a model"):
        mount_page(fastapi.FastAPI(), {})
    with pytest.raises(UserError, match="expected at least 1"):
        mount_page(fastapi.FastAPI(), {"one": engine}, max_upload=0)
