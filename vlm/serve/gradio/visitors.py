"""Which browser a request comes from: a random cookie, by which uploads are told apart."""

from __future__ import annotations

import re
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio

COOKIE = "vlm_visitor"
_FORM = re.compile(r"[\w-]{22}", re.ASCII)


def cookie_in(header: str) -> str:
    """The visitor that a ``Cookie`` header names; empty: none."""
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None and _FORM.fullmatch(found.value) else ""


def new_cookie(path: str, secure: bool) -> str:
    """A ``Set-Cookie`` header for a browser that has none; scripts cannot read it, other sites do not send it."""
    return f"{COOKIE}={secrets.token_urlsafe(16)}; Path={path}; HttpOnly; SameSite=Lax{'; Secure' * secure}"


def visitor_of(request: gradio.Request | None) -> str:
    """The visitor whose event this is. One without a cookie is somebody else each time that a conversation begins."""
    header = "" if request is None else str(request.headers.get("cookie", ""))
    return cookie_in(header) or secrets.token_urlsafe(16)
