"""What a browser may ask of the page's server, checked before Gradio sees it.

Gradio serves far more than a chat page needs (direct calls of functions, a proxy, files by path), and it opens files
and addresses that a request names before the page's own code runs. So every request passes here first: known routes
only, bounded bodies, and no path but one that :meth:`UploadFolder.admit_to` admits.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import nullcontext, suppress
from typing import Any
from urllib.parse import urlsplit

from vlm.common.errors import DataError, UserError
from vlm.serve.gradio.uploads import MIB, UploadFolder
from vlm.serve.gradio.visitors import cookie_in, new_cookie

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = logging.getLogger(__name__)

API = "/gradio_api"
FILE = f"{API}/file="
JOIN, UPLOAD = f"{API}/queue/join", f"{API}/upload"
READ = (
    *("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", f"{API}/theme.css"),
    *(f"{API}/queue/data", f"{API}/upload_progress", f"{API}/startup-events", f"{API}/app_id", "/login_check"),
)
"""Routes of ``GET``, besides the folders."""
FOLDERS = ("/assets/", "/static/", "/svelte/", "/pwa_icon", f"{API}/heartbeat/")
WRITE = (JOIN, UPLOAD, f"{API}/reset", f"{API}/cancel")
MAX_BODY = MIB // 4
"""Bytes of a request that is not an upload."""
SLACK = MIB // 16
"""Bytes that the form around an upload may take."""

HEADERS = {
    # the page draws on nothing but its own server: an answer cannot load an image from elsewhere, and with it tell
    # another machine what was said
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' "
        "'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
        "form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Refused(UserError):
    """A request that is not answered."""

    def __init__(self, status: int, message: str) -> None:
        """``status``: the HTTP status."""
        super().__init__(message)
        self.status = status


class Gate:
    """ASGI middleware around Gradio's application."""

    def __init__(
        self,
        app: Any,
        folder: UploadFolder,
        local: bool,
        public: bool = False,
        password: Callable[[str], bool] | None = None,
    ) -> None:
        """Before ``app``.

        Args:
            app: Gradio's application.
            folder: of the uploads.
            local: the page listens on this machine only.
            public: it also has Gradio's public link.
            password: whether a password, which the browser then asks for, opens the page; None: it is open.
        """
        self.app, self.folder, self.local, self.public = app, folder, local, public
        self.password = password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer that it is refused."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        visitor = cookie_in(headers.get("cookie", ""))
        send = _with_headers(send, None if visitor else _cookie(scope))
        try:
            path = self._route(scope)
            self._origin(scope["method"], headers)
            self._opened(headers)
            if path == JOIN:
                receive = await self._checked(receive, visitor)
            elif path == UPLOAD:
                receive, send = self._measured(headers, receive), self._noting(send, visitor)
            elif path.startswith(FILE):
                self._admitted(path.removeprefix(FILE), visitor, 404)
            elif scope["method"] == "POST":
                receive = _replay(await _body(receive), receive)
        except Refused as error:
            log.debug("refused %s %r: %s", scope["method"], scope["path"], error)
            await _answer(send, error)
            return
        with self.folder.receiving() if path == UPLOAD else nullcontext():
            await self.app(scope, receive, send)

    def _route(self, scope: Scope) -> str:
        """The path of a route that the page uses. Raises Refused: any other."""
        path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")).rstrip("/"))
        method = scope["method"]
        plain = path.rstrip("/") or "/"
        if method in ("GET", "HEAD") and (plain in READ or path.startswith((*FOLDERS, FILE))):
            return path if path.startswith(FILE) else plain
        if method == "POST" and plain in WRITE:
            return plain
        raise Refused(404, "not found")

    def _opened(self, headers: Mapping[str, str]) -> None:
        """Raises Refused: without the password of a page that has one."""
        if self.password is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        try:
            password = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:
            password = ""
        if scheme.lower() != "basic" or not self.password(password):
            raise Refused(401, "the page needs a password: an API key of this server")

    def _origin(self, method: str, headers: Mapping[str, str]) -> None:
        """Raises Refused: sent by another site, or under a name that is not this machine's."""
        host = headers.get("host", "")
        if self.local and not _is_local(host):
            raise Refused(403, "this page answers on this machine only; start it with --host to reach it by a name")
        if self.public:
            return
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host.lower():
            raise Refused(403, "sent by another site")
        if headers.get("sec-fetch-site") == "cross-site" and method == "POST":
            raise Refused(403, "sent by another site")

    async def _checked(self, receive: Receive, visitor: str) -> Receive:
        """The same request to the queue. Raises Refused: a file that is not admitted, or not a request at all."""
        try:
            request = json.loads(await _body(receive))
        except (ValueError, RecursionError):
            raise Refused(400, "not a request of this page") from None
        for medium in list(_media(request)):
            path = self._admitted(medium.get("path"), visitor, 400)
            medium.clear()  # an address or a flag beside the path would make Gradio fetch or trust something else
            medium.update(path=path, meta={"_type": "gradio.FileData"})
        return _replay(json.dumps(request).encode(), receive)  # what was checked, however the original was written

    def _admitted(self, path: object, visitor: str, status: int) -> str:
        try:
            return self.folder.admit_to(path, visitor)
        except DataError as error:
            raise Refused(status, "not found" if status == 404 else str(error)) from None

    def _measured(self, headers: Mapping[str, str], receive: Receive) -> Receive:
        """An upload that ends with an error where it exceeds the limit. Raises Refused: larger, or the folder is full.

        The error is the one that Gradio's own parser raises, which then deletes what it wrote.
        """
        from starlette.formparsers import MultiPartException

        most = self.folder.max_bytes + SLACK
        large = f"a file may have {self.folder.max_bytes // MIB} MiB, the maximum allowed size"
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > most:
            raise Refused(413, large)
        if not self.folder.make_room():
            raise Refused(507, "the page holds too many uploads; try again later")
        left = most

        async def measured() -> MutableMapping[str, Any]:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise MultiPartException(large)
            return message

        return measured

    def _noting(self, send: Send, visitor: str) -> Send:
        """A ``send`` that takes note of the paths in the answer to an upload."""
        parts: list[bytes] = []

        async def noting(message: MutableMapping[str, Any]) -> None:
            parts.append(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                with suppress(ValueError):
                    paths = json.loads(b"".join(parts))
                    for path in paths if isinstance(paths, list) else []:
                        self.folder.sent(str(path), visitor)
            await send(message)

        return noting


def _with_headers(send: Send, cookie: str | None) -> Send:
    """A ``send`` that adds the page's headers."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            own = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in names]
            own += [(b"set-cookie", cookie.encode())] if cookie else []
            message = {**message, "headers": [*message["headers"], *own]}
        await send(message)

    return sending


def _cookie(scope: Scope) -> str | None:
    """A new visitor's cookie, with the page itself; nothing else sets one."""
    root = str(scope.get("root_path", "")).rstrip("/")
    if str(scope["path"]).removeprefix(root).rstrip("/") not in ("", "/config"):
        return None
    return new_cookie(root or "/", scope.get("scheme") == "https")


def _media(value: Any) -> Iterator[dict[str, Any]]:
    """Everything in a request that Gradio may take for a file, however deep."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if "path" in item or "url" in item:
                yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


async def _body(receive: Receive) -> bytes:
    """The whole body. Raises Refused: above ``MAX_BODY``, or the client left."""
    parts: list[bytes] = []
    left, more = MAX_BODY, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "incomplete request")
        parts.append(message.get("body", b""))
        left -= len(parts[-1])
        if left < 0:
            raise Refused(413, f"a request may have {MAX_BODY // 1024} KiB")
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, rest: Receive) -> Receive:
    """A ``receive`` that gives a body, then what ``rest`` gives."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await rest()

    return receive


async def _answer(send: Send, error: Refused) -> None:
    text = json.dumps({"detail": str(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    headers += [(b"www-authenticate", b'Basic realm="vlm chat", charset="UTF-8"')] if error.status == 401 else []
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine only."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _place(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_local(netloc: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{netloc}").hostname or "")
    except ValueError:
        return False
