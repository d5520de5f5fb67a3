"""What an operator asks of a server: is it alive, is it ready, what does it do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vlm.common.errors import printable
from vlm.serve.http.models import Models

if TYPE_CHECKING:
    from vlm.inference.batching.answer import Answer
    from vlm.inference.batching.stats import Stats

access = logging.getLogger("vlm.serve.http.access")

Scope = MutableMapping[str, Any]
ROUTES = ("/health", "/ready", "/metrics")
"""Neither logged nor counted, and answered while the server drains: balancers ask for them every few seconds."""
GONE = 499
"""Status, in log and metrics, of a request whose client went away before the answer began (as in nginx)."""
WINDOW = 60.0
"""Seconds over which ``vlm_tokens_per_second`` is the mean."""
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.4, 0.8, 1.6)

GAUGES = {
    "running": ("vlm_answers_running", "Answers being written"),
    "waiting": ("vlm_questions_waiting", "Questions in the queue"),
    "feature_bytes": ("vlm_feature_cache_bytes", "Bytes of visual features of recent images"),
    "prefix_bytes": ("vlm_prefix_cache_bytes", "Bytes of keys and values of prompts that may come again"),
    "kv_bytes": ("vlm_kv_bytes", "Bytes of keys and values of the answers being written"),
}
COUNTERS = {
    "asked": ("vlm_questions", "Questions asked"),
    "prompt_tokens": ("vlm_prompt_tokens", "Positions of prompts, visual tokens included"),
    "cached_tokens": ("vlm_cached_tokens", "Positions of prompts that were found in the prefix cache"),
    "written_tokens": ("vlm_written_tokens", "Tokens of answers"),
    "steps": ("vlm_steps", "Calls of the language model"),
    "feature_hits": ("vlm_feature_cache_hits", "Images and videos whose features were found in the cache"),
    "feature_misses": ("vlm_feature_cache_misses", "Images and videos that were encoded"),
    "guessed": ("vlm_guessed_tokens", "Tokens guessed by lookup"),
    "guessed_right": ("vlm_guessed_right_tokens", "Tokens guessed by lookup that were right"),
}
ENDS = {
    "stopped": "stop",
    "at_length": "length",
    "cancelled": "cancelled",
    "timed_out": "timeout",
    "failed": "error",
}
"""Fields of ``Stats`` that count answers -> the label ``finish`` of ``vlm_answers_total``."""


@dataclass
class Asked:
    """What is known of the request that is being answered, for its line in the log."""

    model: str = ""
    tenant: str = ""
    prompt: int = 0
    written: int = 0


_asked: ContextVar[Asked | None] = ContextVar("asked", default=None)


class Metrics:
    """Counts of a server in a registry of its own, and those of its engines when they are asked for.

    No metric has the tenant as a label: how many there are is not bounded, and who uses a server is nobody's business
    who may read its metrics. The log names the tenant.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "vlm_requests", "Requests by endpoint, status and model", ["endpoint", "status", "model"], **made
        )
        self.seconds = Histogram(
            "vlm_request_seconds", "From a request to the end of its answer", ["endpoint"], buckets=SECONDS, **made
        )
        self.first = Histogram(
            "vlm_time_to_first_token_seconds", "From a question to its first token", ["model"], buckets=SECONDS, **made
        )
        self.per_token = Histogram(
            "vlm_time_per_token_seconds",
            "Mean time between the tokens of an answer",
            ["model"],
            buckets=TOKEN_SECONDS,
            **made,
        )
        self._written: dict[str, deque[tuple[float, int]]] = {}
        now = time.monotonic()
        for name, engine in models.engines.items():
            self._written[name] = deque([(now, engine.stats().written_tokens)])
            self.first.labels(name), self.per_token.labels(name)  # shown as 0 before the first answer
        self.registry.register(self)

    def answered(self, model: str, tenant: str, answer: Answer) -> None:
        """Take note of an answer that is over; called by the endpoints, from any thread."""
        times, written = answer.times, answer.usage.written
        if times.first is not None:
            self.first.labels(model).observe(times.first - times.asked)
            if times.ended is not None and written > 1:
                self.per_token.labels(model).observe((times.ended - times.first) / (written - 1))
        asked = _asked.get()
        if asked is not None:
            asked.model, asked.tenant = model, tenant
            asked.prompt += answer.usage.prompt
            asked.written += written

    def collect(self) -> Iterable[Metric]:
        """The engines' numbers, for ``prometheus_client``."""
        stats = {name: engine.stats() for name, engine in self.models.engines.items()}
        for field, (name, about) in GAUGES.items():
            yield _family(GaugeMetricFamily(name, about, labels=["model"]), stats, field)
        for field, (name, about) in COUNTERS.items():
            yield _family(CounterMetricFamily(name, about, labels=["model"]), stats, field)
        answers = CounterMetricFamily("vlm_answers", "Answers by what ended them", labels=["model", "finish"])
        speed = GaugeMetricFamily(
            "vlm_tokens_per_second", f"Tokens written per second in the last {WINDOW:.0f} seconds", labels=["model"]
        )
        for model, found in stats.items():
            for field, finish in ENDS.items():
                answers.add_metric([model, finish], vars(found)[field])
            speed.add_metric([model], self._speed(model, found.written_tokens))
        yield answers
        yield speed
        ready = GaugeMetricFamily("vlm_ready", "1 while requests are accepted, 0 while the server drains")
        ready.add_metric([], 0 if self.models.is_draining else 1)
        yield ready

    def _speed(self, model: str, written: int) -> float:
        """The mean since the oldest reading of the window; of the whole time before the first one."""
        seen, now = self._written.setdefault(model, deque()), time.monotonic()
        while len(seen) > 1 and seen[1][0] <= now - WINDOW:
            seen.popleft()
        began, before = seen[0] if seen else (now, written)
        seen.append((now, written))
        return (written - before) / (now - began) if now > began else 0.0

    def text(self) -> bytes:
        """Everything in the text format of Prometheus."""
        return generate_latest(self.registry)


def _family(family: Any, stats: dict[str, Stats], field: str) -> Any:
    for model, found in stats.items():
        family.add_metric([model], vars(found)[field])
    return family


def add_routes(app: FastAPI, models: Models, metrics: Metrics) -> None:
    """Add ``/health``, ``/ready`` and ``/metrics``."""
    router = APIRouter()

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> dict[str, str]:
        """200 while the process is alive."""
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    async def ready() -> JSONResponse:
        """200 while requests are accepted, else 503."""
        is_ready = bool(models.engines) and not models.is_draining
        status = "ready" if is_ready else "draining" if models.engines else "loading"
        return JSONResponse({"status": status, "models": list(models.engines)}, 200 if is_ready else 503)

    @router.get("/metrics", response_class=Response)
    def numbers() -> Response:
        """The metrics in the text format of Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    app.include_router(router)


class Watch:
    """ASGI middleware that writes the access log and counts requests: no query strings, headers or bodies."""

    def __init__(self, app: Any, metrics: Metrics, endpoints: Iterable[str], log: bool = True) -> None:
        """``endpoints``: the paths that are metrics of their own; ``log``: whether requests are logged."""
        self.app = app
        self.metrics = metrics
        self.endpoints = frozenset(endpoints)
        self.log = log

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on, and note how it ended."""
        if scope["type"] != "http" or scope["path"] in ROUTES:
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), GONE

        async def seen(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        asked, has_failed = Asked(), True
        token = _asked.set(asked)
        try:
            await self.app(scope, receive, seen)
            has_failed = False
        except asyncio.CancelledError:
            has_failed = False
            raise
        finally:
            _asked.reset(token)
            status = 500 if has_failed and status == GONE else status
            self._note(scope, status, time.monotonic() - began, asked)

    def _note(self, scope: Scope, status: int, seconds: float, asked: Asked) -> None:
        endpoint = self._endpoint(scope)
        self.metrics.requests.labels(endpoint, str(status), asked.model).inc()
        self.metrics.seconds.labels(endpoint).observe(seconds)
        if not self.log:
            return
        path = printable(scope["path"])[:200].replace("\n", "\\n")
        words = [scope["method"], path, str(status), f"{seconds:.3f} s"]
        words += [f"{asked.prompt}+{asked.written} tokens", f"model={asked.model}"] if asked.model else []
        words += [f"tenant={printable(asked.tenant)}"] if asked.tenant else []
        access.info("%s", " ".join(words))

    def _endpoint(self, scope: Scope) -> str:
        """The route, so that a scanner's made-up paths make no metrics."""
        if scope["path"] in self.endpoints:
            return scope["path"]
        return next((e for e in self.endpoints if "{" in e and scope["path"].startswith(e.partition("{")[0])), "other")
