"""Puts the server together, and runs it until a signal ends it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import uvicorn
from fastapi import FastAPI

from vlm.common.errors import UserError
from vlm.common.logging import say
from vlm.serve.http.app import create_app
from vlm.serve.http.connections import server_options
from vlm.serve.http.drain import Drain, first_signal
from vlm.serve.http.fetch import Fetcher
from vlm.serve.http.guard import Guard, until_it_stalls
from vlm.serve.http.keys import Keys
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models
from vlm.serve.http.ops import Metrics, Watch, add_routes

log = logging.getLogger(__name__)

LEFTOVER = 2.0
"""Seconds for connections to close after the last answer."""


class Assembled:
    """The whole server as one ASGI app: log and counts, then the way out, then the guard, then the endpoints.

    Attributes:
        drain: counts the requests in progress and refuses others at the end.
        metrics: the counts.
    """

    def __init__(
        self,
        models: Models,
        limits: Limits,
        keys: Keys,
        fetcher: Fetcher | None = None,
        *,
        hosts: Sequence[str] = (),
        page_host: str | None = None,
        feedback: str | None = None,
        access_log: bool = True,
    ) -> None:
        """Put it together.

        Args:
            models: what is served.
            limits: of requests.
            keys: who may ask; empty: everybody.
            fetcher: of images and videos by address; None: none is fetched.
            hosts: names that the ``Host`` header may have; none: any.
            page_host: the address that the server listens on, if it also serves the chat page at ``/``.
            feedback: folder of the page's feedback, see ``vlm.serve.gradio.app.launch``.
            access_log: whether a line is written for every request.

        Raises:
            UserError: the page needs gradio, which is not installed, or an unusable ``feedback``.
        """
        self.metrics = Metrics(models)
        api = create_app(models, limits, fetcher=fetcher, observer=self.metrics, tenants=keys.tenants)
        add_routes(api, models, self.metrics)
        paths = list(api.openapi()["paths"])
        guard = Guard(api, limits, keys, hosts)
        inner: Any = guard
        if page_host is not None:
            inner = WithPage(guard, models, page_host, paths, feedback)
        self.drain = Drain(inner, models)
        self._app = Watch(self.drain, self.metrics, paths, access_log)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI app."""
        await self._app(scope, receive, send)


class WithPage:
    """An API, and at all other paths the chat page, which an API key opens where keys are needed.

    The heads of requests to the page are checked as the API's, the name in ``Host`` among them, and a body that stalls
    ends them. How large a body may be is the page's own rule: an upload is larger than a question.
    """

    def __init__(
        self, guard: Guard, models: Models, host: str, paths: Sequence[str], feedback: str | None = None
    ) -> None:
        """Put the page beside an API.

        Args:
            guard: around the API; its keys open the page.
            models: what the page offers.
            host: what the server listens on.
            paths: those of the API.
            feedback: folder of the page's feedback; None: the page asks for none.

        Raises:
            UserError: gradio is missing, or an unusable ``feedback``.
        """
        from vlm.serve.gradio.mount import mount_page

        self.guard = guard
        self.page = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self._paths = frozenset({*paths, "/openapi.json"})
        keys = guard.keys
        password = (lambda text: keys.tenant(text) is not None) if keys else None
        checked = bool(guard.hosts or keys)  # a web page with a name of its own has no password
        options: dict[str, Any] = {"password": password, "any_name": checked, "feedback": feedback}
        mount_page(self.page, models.engines, host=host, **options)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI app; starting and ending are the page's."""
        is_page = scope["type"] == "lifespan" or not (scope["path"] in self._paths or scope["path"].startswith("/v1/"))
        if not is_page:
            await self.guard(scope, receive, send)
        elif scope["type"] != "http":
            await self.page(scope, receive, send)
        elif (refusal := self.guard.fault_of_head(scope)) is not None:
            await refusal.answer(receive, send)
        else:
            await self.page(scope, until_it_stalls(receive, self.guard.limits.stall_seconds), send)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address, which refuses connections until the server runs.

    Raises UserError: the port is in use, or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        result = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host}: not an address ({error.strerror})", fix="e.g. --host 127.0.0.1") from error
    try:
        result.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        result.bind(address)
    except OSError as error:
        result.close()
        raise UserError(
            f"port {port} of {host} cannot be used ({error.strerror})",
            fix="give another with --port; --port 0 takes a free one",
        ) from error
    return result


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run(app: Assembled, listening: socket.socket, limits: Limits, started: str = "") -> int:
    """Serve until SIGTERM or SIGINT, finish the accepted requests, and return the exit code.

    Args:
        app: the server.
        listening: see :func:`listen`.
        limits: as those of ``app``.
        started: printed when requests are accepted.
    """
    config = uvicorn.Config(
        app,
        lifespan="auto",
        log_config=None,
        timeout_graceful_shutdown=int(LEFTOVER),
        **server_options(limits),
    )
    left = asyncio.run(_serve(app, _Server(config), listening, limits.drain_seconds, started))
    if left:  # what is still being computed would keep the process alive
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
    return 0


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Nothing, see :func:`.drain.first_signal`."""
        return nullcontext()


async def _serve(app: Assembled, server: _Server, listening: socket.socket, drain_seconds: float, started: str) -> int:
    draining: list[asyncio.Task[int]] = []

    async def drain() -> int:
        left = await app.drain.finish(drain_seconds)
        server.should_exit = True
        return left

    with first_signal(lambda: draining.append(asyncio.create_task(drain()))):
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        if started and server.started:
            say(started)
        await serving
    return await draining[0] if draining else 0
