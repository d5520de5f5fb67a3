"""The chat page as a part of another server, such as the one of the HTTP API."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError
from vlm.serve.feedback.folder import FeedbackFolder
from vlm.serve.feedback.record import model_section
from vlm.serve.gradio.examples import Example, is_tiny_model, read_page_examples, tiny_model_examples
from vlm.serve.gradio.gate import Gate, is_loopback
from vlm.serve.gradio.uploads import MAX_FILE, MIB, upload_folder

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.middleware import Middleware

    from vlm.inference.engine import Engine

SESSIONS = 100
"""Conversations kept at most; the one not used for longest is forgotten first."""
WAITING = 64
"""Requests that wait at most; further ones are told that the page is busy."""
THREADS = 80
"""Of which as many write answers as ``layout.TOGETHER``, and the others do the rest."""
STATISTICS = {
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),
    "GRADIO_RUN_HISTORY": "false",
}
"""Gradio otherwise keeps 10,000 past requests and makes a table of them after each, and browsers keep a history."""


def mount_page(
    app: FastAPI,
    engines: Mapping[str, Engine],
    path: str = "/",
    *,
    host: str = "127.0.0.1",
    password: Callable[[str], bool] | None = None,
    any_name: bool = False,
    generation: Mapping[str, Any] | None = None,
    stream: bool = True,
    examples: str | Path | None = None,
    max_upload: int = MAX_FILE // MIB,
    feedback: str | Path | None = None,
) -> None:
    """Add the chat page to a server, over the same engines; call it after all other routes are there.

    A browser reaches no file but uploads and examples, see :mod:`vlm.serve.gradio.gate`.

    Args:
        app: the server; its lifespan starts and ends the page's queue.
        engines: models by name.
        path: of the page; with "/" it answers whatever no other route does.
        host: that the server listens on; on this machine only, other names for it are refused.
        password: whether a password opens the page, such as the API keys of the server; None: it is open to everybody
            who reaches it.
        any_name: the name in ``Host`` does not matter: the server checks it, or the password does.
        generation, stream, examples, max_upload, feedback: see ``launch``.

    Raises:
        UserError: gradio is not installed, or an unusable ``examples``, ``max_upload`` or ``feedback``.
    """
    gradio = need_gradio()
    page, shown = build(engines, generation, stream, examples, max_upload, feedback)
    vars(page)["max_threads"] = THREADS
    gradio.mount_gradio_app(
        app,
        page,
        path,
        server_name=host,
        app_kwargs=app_options(gate(host, password=password, any_name=any_name)),
        allowed_paths=shown,
        show_error=False,
        **look(),
    )


def build(
    engines: Mapping[str, Engine],
    generation: Mapping[str, Any] | None,
    stream: bool,
    examples: str | Path | None,
    max_upload: int,
    feedback: str | Path | None = None,
) -> tuple[Any, list[str]]:
    """The page and the paths of its examples; see ``launch``.

    Raises UserError: an unusable ``examples``, ``max_upload`` or ``feedback``, or no engine.
    """
    from vlm.serve.gradio import layout
    from vlm.serve.gradio.events import Models
    from vlm.serve.gradio.rating import Ratings

    if max_upload < 1:
        raise UserError(f"the largest upload is {max_upload} MiB, expected at least 1", fix="e.g. --max-upload 64")
    if not engines:
        raise UserError("a chat page needs a model", fix="name a run folder")
    world = all(is_tiny_model(engine.config) for engine in engines.values())
    folder = tempfile.TemporaryDirectory(prefix="vlm_page_")
    shown: list[Example] = read_page_examples(examples) if examples else []
    if world and not examples:
        shown = tiny_model_examples(Path(folder.name))
    uploads = upload_folder()
    uploads.max_bytes = max_upload * MIB
    ratings = None
    if feedback is not None:
        ratings = Ratings(FeedbackFolder(feedback, model_section(next(iter(engines.values())))), engines)
    options = {name: engine.options(**generation or {}) for name, engine in engines.items()}
    page = layout.build(Models(dict(engines), options), shown, pixels=world, stream=stream, ratings=ratings)
    vars(page)["examples_folder"] = folder  # lives as long as the page
    uploads.keep_present()
    for name, value in STATISTICS.items():
        os.environ.setdefault(name, value)
    page.queue(max_size=WAITING, api_open=False)
    page.state_session_capacity = SESSIONS
    return page, [path for path, _ in shown]


def gate(
    host: str, public: bool = False, password: Callable[[str], bool] | None = None, any_name: bool = False
) -> Middleware:
    """The gate before the page of a server that listens on ``host``.

    ``public``: it also has a public link; ``any_name``: see :func:`mount_page`.
    """
    from starlette.middleware import Middleware

    local = is_loopback(host) and not (public or any_name)
    return Middleware(Gate, folder=upload_folder(), local=local, public=public, password=password)


def app_options(before: Middleware) -> dict[str, Any]:
    """Options of Gradio's own application: the gate, and no pages about an API."""
    return {"middleware": [before], "docs_url": None, "redoc_url": None, "openapi_url": None}


def look() -> dict[str, Any]:
    """Options that the page has however it is started."""
    from vlm.serve.gradio import theme

    return {
        "theme": theme.theme(need_gradio()),
        "css": theme.static("chat.css"),
        "head": theme.static("head.html"),
        "footer_links": [],
        "max_file_size": upload_folder().max_bytes,
        "enable_monitoring": False,
        "pwa": False,
        "mcp_server": False,
        "ssr_mode": False,
    }


def need_gradio() -> Any:
    """The package. Raises UserError: it is not installed."""
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError("the chat page needs Gradio", fix='pip install "vlm-compose[demo]", or run vlm chat') from error
    return gradio


def names_of(sources: Sequence[Any]) -> list[str]:
    """A short name for each of some models: that of its folder or file, with as many parents as tell them apart."""
    from vlm.inference.engine import Engine

    paths = [
        ("/".join(source.name) or "model") if isinstance(source, Engine) else str(source).rstrip("/")
        for source in sources
    ]
    result: list[str] = []
    for path in paths:
        parts = Path(path).parts or (path,)
        others = [Path(other).parts for other in paths if other != path]
        count = next((n for n in range(1, len(parts)) if all(o[-n:] != parts[-n:] for o in others)), len(parts))
        name = "/".join(parts[-count:])
        result.append(f"{name} ({result.count(name) + 1})" if name in result else name)
    return result
