"""The application: endpoints of OpenAI's API in front of one or several engines.

``POST /v1/chat/completions``, ``/v1/completions``, ``/tokenize``, ``/detokenize``; ``GET /v1/models``,
``/v1/models/{name}``, ``/openapi.json``. What the fields of a request mean is in
:mod:`vlm.serve.http.api.requests`, the form of errors in :mod:`vlm.serve.http.errors`.

* An answer ends with ``finish_reason`` ``stop`` (an end token or a text of ``stop``, which is not shown) or ``length``
  (as long as allowed, the context is full, or ``Limits.seconds`` are over).
* Images and videos are decoded from the bytes of ``data:`` URLs, or of what a ``Fetcher`` gives; paths are refused.
* A client that goes away cancels its answers, and the slot is free at the next token.
"""

from __future__ import annotations

from fastapi import FastAPI

from vlm.common import VERSION
from vlm.serve.http.api.media import Fetcher
from vlm.serve.http.api.routes import add_routes
from vlm.serve.http.api.server import Observer, Server
from vlm.serve.http.errors import add_handlers
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models

__all__ = ["Fetcher", "Observer", "create_app"]


def create_app(
    models: Models,
    limits: Limits | None = None,
    *,
    fetcher: Fetcher | None = None,
    observer: Observer | None = None,
    tenants: int = 1,
) -> FastAPI:
    """The ASGI application.

    Args:
        models: engines by name; may be filled later, until when requests get 503.
        limits: of a request.
        fetcher: reads images from ``https`` addresses; None: these are refused.
        observer: is told of each answer that has ended.
        tenants: how many share the server; none of several can fill the queue alone.

    Example:
        >>> uvicorn.run(create_app(Models({"mine": vlm.load("output/mine")})), port=8000)
    """
    app = FastAPI(
        title="vlm",
        version=VERSION,
        docs_url=None,  # these pages load scripts from another host
        redoc_url=None,
    )
    add_handlers(app)
    app.include_router(add_routes(Server(models, limits or Limits(), fetcher, observer, tenants)))
    return app
