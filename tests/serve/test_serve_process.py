"""``vlm serve`` as a process: a signal loses no accepted request, and a second one does not wait."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from vlm.cli.main import main

from .served import Clients, served


@pytest.mark.heavy
def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        clients = Clients(server.url, 16).start()
        clients.wait_for(20)
        clients.since = time.monotonic()
        server.signal()
        clients.join()
        assert server.wait() == 0, server.log.read_text()
    assert set(clients.ends) == {"answered", "refused"}, clients.ends
    assert clients.ends["refused"] == 16
    assert clients.late > 0, "nothing was in progress when the signal came: this test could not fail"
    assert "Traceback" not in server.log.read_text()


@pytest.mark.heavy
def test_a_second_signal_ends_the_server_at_once(tmp_path: Path) -> None:
    with served(tmp_path, "--limit", "tokens=400") as server:
        clients = Clients(server.url, 16, tokens=400).start()
        server.wait_until_writing()
        server.signal()
        time.sleep(0.2)
        began = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.wait() == -signal.SIGINT
        assert time.monotonic() - began < 2
        clients.join()


@pytest.mark.heavy
def test_draining_takes_no_longer_than_its_limit(tmp_path: Path) -> None:
    with served(tmp_path, "--limit", "drain_seconds=0.3", "tokens=400") as server:
        clients = Clients(server.url, 16, tokens=400).start()
        server.wait_until_writing()
        began = time.monotonic()
        server.signal()
        assert server.wait() == 0
        assert time.monotonic() - began < 15
        clients.join()
    assert "were not finished within 0.3 s" in server.log.read_text()


@pytest.mark.heavy
def test_the_log_names_no_question_key_or_query(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("a-key-of-many-letters: alice\n")
    keys.chmod(0o600)
    with served(tmp_path, "--api-keys", str(keys), models=("cats=tiny/eval", "dogs=tiny/eval")) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            assert client.get("/v1/models").status_code == 401
            client.headers["authorization"] = "Bearer a-key-of-many-letters"
            assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["cats", "dogs"]
            secret = {"model": "dogs", "messages": [{"role": "user", "content": "my secret question"}]}
            assert client.post("/v1/chat/completions?key=hidden", json=secret).json()["model"] == "dogs"
            metrics = client.get("/metrics").text
        server.signal(signal.SIGINT)
        assert server.wait() == 0
    text = server.log.read_text()
    assert "POST /v1/chat/completions 200" in text
    assert "model=dogs tenant=alice" in text
    assert 'vlm_requests_total{endpoint="/v1/chat/completions",model="dogs",status="200"} 1.0' in metrics
    assert not any(word in text for word in ("secret", "hidden", "a-key-of-many-letters"))


def test_a_port_in_use_is_one_message_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "no/such/run", "--port", port]) == 2
    told = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1 cannot be used" in told
    assert "--port 0" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["x", "--host", "0.0.0.0"], "no API keys are given"),
        (["x", "--host", "no.such.host.invalid", "--no-keys"], "not an address"),
        (["x", "--limit", "tokens=0"], "at least 1"),
        (["x", "--limit", "toknes=5"], "tokens"),
        (["a=x", "a=y"], "two models would be called a"),
        (["x", "--address", "http://127.0.0.1:1"], "--engine vllm"),
        (["x", "--engine", "vllm"], "--address"),
        (["x", "--api-keys", "no_such_file"], "no_such_file"),
        (["no/such/run", "--port", "0"], "no/such/run"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.heavy
def test_page_and_api_share_a_process(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    with served(tmp_path, "--page") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        page = client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "gradio" in page.text
        assert client.get("/v1/models").json()["data"][0]["id"] == "eval"
        assert client.get("/v1/no_such").json()["error"]["type"]
        assert client.get("/ready").json() == {"status": "ready", "models": ["eval"]}
        assert client.get("/gradio_api/info").status_code in (403, 404)
        with client.stream("GET", "/gradio_api/heartbeat/abc"):  # an open tab doesn't hold up the end
            server.signal()
            assert server.wait() == 0
    assert "Traceback" not in server.log.read_text()
