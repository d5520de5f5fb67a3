"""What an operator sees of a server, with engines that only count."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from prometheus_client.parser import text_string_to_metric_families

from vlm.cli.serve import limits_of, limits_text
from vlm.common.errors import UserError
from vlm.inference.batching.answer import Times, Usage
from vlm.inference.batching.stats import Stats
from vlm.serve.http.drain import Drain
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models, named_runs
from vlm.serve.http.ops import Metrics, Watch, add_routes

SECRET = "sk-very-secret"


class Counting:
    """An engine that has only numbers."""

    def __init__(self) -> None:
        self.now = Stats()

    def stats(self) -> Stats:
        return self.now


class Server:
    """Endpoints that end when they are told to, behind what ``vlm serve`` puts in front."""

    def __init__(self) -> None:
        self.engine = Counting()
        self.models = Models({"cats": self.engine})  # type: ignore[dict-item]
        self.metrics = Metrics(self.models)
        self.go, self.began = asyncio.Event(), asyncio.Event()
        app = FastAPI()
        add_routes(app, self.models, self.metrics)

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> PlainTextResponse:
            self.began.set()
            await self.go.wait()
            answer = SimpleNamespace(usage=Usage(prompt=20, written=5), times=Times(asked=0.0, first=0.3, ended=0.5))
            self.metrics.answered("cats", "alice", answer)  # type: ignore[arg-type]
            return PlainTextResponse("done")

        @app.get("/v1/fails")
        async def fails() -> None:
            raise ZeroDivisionError

        self.drain = Drain(app, self.models)
        self.app = Watch(self.drain, self.metrics, ["/v1/chat/completions", "/v1/fails", "/v1/models/{model}"])

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    def samples(self) -> dict[str, float]:
        """``name{label="value"}`` -> number."""
        return {
            sample.name + str(dict(sorted(sample.labels.items())) or ""): sample.value
            for family in text_string_to_metric_families(self.metrics.text().decode())
            for sample in family.samples
        }


def test_the_metrics_count_requests_and_what_the_engines_did(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(server: Server) -> None:
        server.go.set()
        async with server.client() as client:
            secret = {"authorization": f"Bearer {SECRET}"}
            await client.post("/v1/chat/completions", headers=secret, params={"key": SECRET}, content=SECRET)
            await client.get("/v1/fails")
            for path in ("/wp-login.php", "/v1/models/x%0Aforged", "/health", "/ready", "/metrics"):
                await client.get(path)

    server = Server()
    with caplog.at_level(logging.INFO, "vlm"):
        asyncio.run(ask(server))
    server.engine.now = Stats(running=2, waiting=3, written_tokens=50, stopped=4, cached_tokens=7, prefix_bytes=11)
    found = server.samples()
    chat = "{'endpoint': '/v1/chat/completions', 'model': 'cats', 'status': '200'}"
    assert found[f"vlm_requests_total{chat}"] == 1
    assert found["vlm_requests_total{'endpoint': 'other', 'model': '', 'status': '404'}"] == 1
    assert found["vlm_requests_total{'endpoint': '/v1/models/{model}', 'model': '', 'status': '404'}"] == 1
    assert found["vlm_requests_total{'endpoint': '/v1/fails', 'model': '', 'status': '500'}"] == 1
    assert sum(value for name, value in found.items() if name.startswith("vlm_requests_total")) == 4
    assert found["vlm_time_to_first_token_seconds_sum{'model': 'cats'}"] == pytest.approx(0.3)
    assert found["vlm_time_per_token_seconds_sum{'model': 'cats'}"] == pytest.approx(0.2 / 4)
    assert found["vlm_answers_running{'model': 'cats'}"] == 2
    assert found["vlm_questions_waiting{'model': 'cats'}"] == 3
    assert found["vlm_answers_total{'finish': 'stop', 'model': 'cats'}"] == 4
    assert found["vlm_cached_tokens_total{'model': 'cats'}"] == 7
    assert found["vlm_prefix_cache_bytes{'model': 'cats'}"] == 11
    assert found["vlm_tokens_per_second{'model': 'cats'}"] > 0
    lines = [record.getMessage() for record in caplog.records if record.name.endswith(".access")]
    assert len(lines) == 4
    assert lines[0].startswith("POST /v1/chat/completions 200 ")
    assert lines[0].endswith(" 20+5 tokens model=cats tenant=alice")
    assert all(SECRET not in line and "\n" not in line and "?" not in line for line in lines)


def test_every_number_of_an_engine_is_a_metric() -> None:
    server = Server()
    for number, name in enumerate(vars(Stats()), start=1000):
        setattr(server.engine.now, name, number)
    shown = set(server.samples().values())
    missing = [name for name, number in vars(server.engine.now).items() if number not in shown]
    assert not missing


def test_a_draining_server_finishes_what_it_accepted_and_refuses_the_rest() -> None:
    async def drained() -> tuple[Any, ...]:
        server = Server()
        async with server.client() as client:
            before = await client.get("/ready")
            accepted = asyncio.create_task(client.post("/v1/chat/completions"))
            await server.began.wait()
            finishing = asyncio.create_task(server.drain.finish(20))
            await asyncio.sleep(0)
            during = await client.get("/ready"), await client.get("/health"), await client.post("/v1/chat/completions")
            assert not finishing.done()
            server.go.set()
            return before, *during, await accepted, await finishing

    before, ready, health, refused, accepted, left = asyncio.run(drained())
    assert (before.status_code, before.json()) == (200, {"status": "ready", "models": ["cats"]})
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert health.status_code == 200
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["connection"] == "close"
    assert refused.json()["error"]["type"] == "server_error"
    assert (accepted.status_code, accepted.text, accepted.headers["connection"]) == (200, "done", "close")
    assert left == 0


def test_draining_ends_when_its_time_is_over() -> None:
    async def drained() -> int:
        server = Server()
        async with server.client() as client:
            accepted = asyncio.create_task(client.post("/v1/chat/completions"))
            await server.began.wait()
            left = await server.drain.finish(0.05)
            server.go.set()
            await accepted
            return left

    assert asyncio.run(drained()) == 1


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["output/quickstart/stage2"], ["stage2"]),
        (["output/cats/last", "output/dogs/checkpoints/step_00000300"], ["cats", "dogs"]),
        (["a/stage2", "b/stage2", "other"], ["a-stage2", "b-stage2", "other"]),
        (["stage2=output/x", "output/stage2"], ["stage2", "output-stage2"]),
        (["org/cats=output/x", "y=output/x"], ["org/cats", "y"]),
        (["tiny/eval", "models/my model (1)"], ["eval", "my-model-1"]),
    ],
)
def test_names_come_from_folders_and_are_unique(given: list[str], names: list[str]) -> None:
    assert list(named_runs(given)) == names


@pytest.mark.parametrize("given", [["a=x", "a=y"], ["a b=x"], ["a="], ["../x", "../x"]])
def test_names_that_cannot_be_told_apart_are_refused(given: list[str]) -> None:
    with pytest.raises(UserError):
        named_runs(given)


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Any) -> None:
    run = tmp_path / "lr=3"
    run.mkdir()
    assert named_runs([str(run)]) == {"lr-3": str(run)}


def test_limits_are_read_and_checked() -> None:
    assert limits_of(["tokens=512", "seconds=2.5"]) == Limits(tokens=512, seconds=2.5)
    with pytest.raises(UserError, match="images"):
        limits_of(["imagse=2"])
    with pytest.raises(UserError, match="at least 1"):
        limits_of(["tokens=0"])
    with pytest.raises(UserError, match="KEY=VALUE"):
        limits_of(["tokens"])
    assert all(f"  {name}=" in limits_text() for name in vars(Limits()))
