"""What a request must be before the API sees it: who asks, how large it is, and how fast it comes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any, TypeAlias

from vlm.serve.http.keys import Keys
from vlm.serve.http.limits import Limits
from vlm.serve.http.refusals import LINGER, Refusal

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""Host names of a server that is bound to loopback. Another name there is a web page whose own name points to it."""
OPEN_PATHS = ("/health", "/ready")
"""Answered without a key, and however many requests there are."""
METRICS = "/metrics"
FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
METHODS = ("GET", "HEAD", "POST", "OPTIONS")
HEADERS = 100
"""Headers of a request at most."""
LEAST = 1 << 14
"""Bytes that a client sends in ``Limits.stall_seconds``, or the rest of the body."""
BODIES = 16
"""Bodies of the largest size that are held at the same time."""
VALUES = 1 << 18
"""Commas in a body: each value of a request costs far more memory and time than its bytes."""
MIB = 1 << 20


class Guard:
    """ASGI middleware around the whole API.

    It refuses what is not allowed with an OpenAI error object, and leaves the tenant in ``scope["state"]["tenant"]``
    (``""`` where no keys are needed). The API gets the body in one message.
    """

    def __init__(self, app: App, limits: Limits, keys: Keys | None = None, hosts: Sequence[str] = ()) -> None:
        """Wrap ``app``.

        Args:
            app: the API.
            limits: of one request, and of all.
            keys: of those who may ask; None or empty: everybody.
            hosts: names that the ``Host`` header may have, without a port; empty: any.
        """
        self.app = app
        self.limits = limits
        self.keys = keys or Keys()
        self.hosts = {host.lower().strip("[]") for host in hosts}
        self._open: Counter[str] = Counter()
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = scope["headers"]
        tenant = self._tenant(scope)
        found = tenant
        if isinstance(tenant, str):
            found = self.fault_of_head(scope) or self._fault(scope) or self._crowd(scope, tenant) or tenant
        if isinstance(found, Refusal):
            await self._refuse(found, receive, send)
            return
        assert isinstance(tenant, str)
        # the key goes no further, so that nothing can log it
        inner = {
            **scope,
            "headers": [(name, value) for name, value in headers if name != b"authorization"],
            "state": {**scope.get("state", {}), "tenant": tenant},
        }
        with self._counted(scope, tenant):
            await self._pass(inner, receive, send)

    # ---- what is refused before the body

    def _tenant(self, scope: Scope) -> str | Refusal:
        """Whose request it is."""
        path = _path(scope)
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        tenant = self.keys.of_header(given[0]) if len(given) == 1 else None
        if tenant is not None:
            return tenant
        if path in OPEN_PATHS or (path == METRICS and _is_local(scope)):
            return ""
        if self.keys:
            said = "no API key" if not given else "an API key that is not known here"
            headers = (("www-authenticate", "Bearer"),)
            return Refusal(401, f"found {said}; send it as Authorization: Bearer KEY", "invalid_api_key", None, headers)
        if path == METRICS:
            return Refusal(403, "metrics are open to this machine, and to others with an API key")
        return ""

    def fault_of_head(self, scope: Scope) -> Refusal | None:
        """What is wrong with the head of a request, whatever is asked for."""
        headers = scope["headers"]
        if len(headers) > HEADERS or sum(len(n) + len(v) for n, v in headers) > self.limits.header_kib * 1024:
            return Refusal(431, f"more than {HEADERS} headers, or {self.limits.header_kib} KiB of them")
        if scope["method"] not in METHODS:
            allowed = ", ".join(METHODS)
            return Refusal(405, f"the method is not one of {allowed}", headers=(("allow", allowed),))
        values = dict(headers)
        if self.hosts and _host(values.get(b"host", b"")) not in self.hosts:
            return Refusal(421, "this server is not known by the name in the Host header", "unknown_host")
        return None

    def _fault(self, scope: Scope) -> Refusal | None:
        """What is wrong with what the head of a request says of its body."""
        values = dict(scope["headers"])
        if values.get(b"content-encoding", b"identity").lower() != b"identity":
            return Refusal(415, "compressed bodies are not read", headers=(("accept-encoding", "identity"),))
        kind = values.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":  # a web page may send others without being asked
            return Refusal(415, "the content type of a body is application/json")
        if b"content-length" in values and b"transfer-encoding" in values:  # proxies disagree on where such a body ends
            return Refusal(400, "a body has a Content-Length or a Transfer-Encoding, not both")
        length = values.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.limits.body_mib * MIB:
            return self._too_large()
        return None

    def _crowd(self, scope: Scope, tenant: str) -> Refusal | None:
        """Whether too many requests are open."""
        if _path(scope) in (*OPEN_PATHS, METRICS):
            return None
        if self._open.total() >= self.limits.connections:
            return Refusal(503, "too many requests are open", "overloaded", 1)
        if self.keys.tenants > 1 and self._open[tenant] >= max(1, self.limits.connections // 2):
            return Refusal(429, "too many requests of this API key are open", "too_many_requests", 1)
        return None

    # ---- the body and the answer

    @contextlib.contextmanager
    def _counted(self, scope: Scope, tenant: str) -> Iterator[None]:
        if _path(scope) in (*OPEN_PATHS, METRICS):
            yield
            return
        self._open[tenant] += 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        data = bytearray()
        try:
            found = await self._read(data, receive)
            if found is True and data.count(b",") > VALUES:
                found = Refusal(400, f"a body has at most {VALUES:,} values")
        finally:
            size = len(data)
            self._held -= size
        if isinstance(found, Refusal):
            data.clear()
            await self._refuse(found, receive, send)
        elif found:
            self._held += size  # the API keeps it, or what it was parsed into, until the answer is over
            try:
                await self.app(scope, _replayed(data, receive), send)
            finally:
                self._held -= size

    async def _read(self, data: bytearray, receive: Receive) -> bool | Refusal:
        """Fill ``data`` with the body; whether it is complete."""
        stall, clock = self.limits.stall_seconds, asyncio.get_running_loop().time
        last = clock() + self.limits.seconds
        due, before = clock() + stall, 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, min(due, last) - clock()))
            except (asyncio.TimeoutError, TimeoutError):
                message = {"type": "http.request", "more_body": True}
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            data += part
            self._held += len(part)
            if len(data) > self.limits.body_mib * MIB:
                return self._too_large()
            if self._held > BODIES * self.limits.body_mib * MIB:
                return Refusal(503, "too many large requests are open", "overloaded", 1)
            if not message.get("more_body", False):
                return True
            if clock() >= min(due, last):
                if clock() >= last or len(data) - before < LEAST:
                    return Refusal(408, f"the body stalled for {stall:g} seconds")
                due, before = clock() + stall, len(data)

    async def _refuse(self, refusal: Refusal, receive: Receive, send: Send) -> None:
        await refusal.answer(receive, send, min(LINGER, self.limits.stall_seconds))

    def _too_large(self) -> Refusal:
        return Refusal(413, f"a body has at most {self.limits.body_mib} MiB", "body_too_large")


def _replayed(data: bytearray, receive: Receive) -> Receive:
    """``receive`` with the whole body before what comes next; ``data`` is empty then."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        body = bytes(data)
        data.clear()
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def until_it_stalls(receive: Receive, seconds: float) -> Receive:
    """``receive`` of a client that counts as gone when it sends nothing of its body for so long."""
    more = True

    async def receiving() -> Message:
        nonlocal more
        if not more:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), seconds)
        except (asyncio.TimeoutError, TimeoutError):
            message = {"type": "http.disconnect"}
        more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    return receiving


def _path(scope: Scope) -> str:
    """The path below the one under which the server is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _host(value: bytes) -> str:
    """The name in a ``Host`` header, without port."""
    text = value.decode("latin-1").lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def _is_local(scope: Scope) -> bool:
    """Whether the client is on this machine: loopback, or a socket that is a file, and not a proxy for another."""
    if any(name in FORWARDED for name, _ in scope["headers"]):
        return False
    if not scope.get("client"):
        return True
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
