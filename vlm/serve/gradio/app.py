"""Loads a model and serves its chat page."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError
from vlm.common.logging import busy, quiet, say
from vlm.serve.gradio.examples import is_tiny_model, read_page_examples, tiny_model_examples
from vlm.serve.gradio.gate import Gate, is_loopback
from vlm.serve.gradio.uploads import MAX_FILE, MIB, upload_folder

if TYPE_CHECKING:
    import torch

    from vlm.config.api import Config
    from vlm.inference.engine import Engine

log = logging.getLogger(__name__)

SESSIONS = 100
"""Conversations kept at most; the one not used for longest is forgotten first."""
WAITING = 64
"""Requests that wait at most; further ones are told that the page is busy."""
STATISTICS = {"GRADIO_ANALYTICS_MAX_EVENTS": "100", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9)}
"""Gradio otherwise keeps 10,000 past requests and makes a table of them after each."""
PORTS = range(7860, 7960)
"""Tried in order when no port is given."""


def launch(
    source: str | Path | Config | Engine,
    *,
    options: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    device: str | torch.device | None = None,
    generation: Mapping[str, Any] | None = None,
    stream: bool = True,
    examples: str | Path | None = None,
    allow_random: bool = False,
    max_upload: int = MAX_FILE // MIB,
    block: bool = True,
    trust: bool = False,
) -> Any:
    """Load a model and serve its page.

    A browser reaches no file but uploads and examples, see :mod:`vlm.serve.gradio.gate`.

    Args:
        source, options, trust, allow_random: see ``Engine.load``; the first may also be an engine.
        host: address to listen on.
        port: None takes the first free one.
        share: also make a public link.
        device: None leaves it to the configuration.
        generation: changes to the generation options that the page's settings start from.
        stream: show answers as they are written; False: only when they are complete.
        examples: file of images and questions to click, see ``read_page_examples``; None: those of the embedded model.
        max_upload: size of the largest image or video, in MiB.
        block: wait until the page is stopped; False returns the running ``gradio.Blocks``.

    Raises:
        UserError: gradio is not installed, the port is in use, an unusable ``max_upload``, or the model cannot be
            loaded.
    """
    _gradio()
    if max_upload < 1:
        raise UserError(f"the largest upload is {max_upload} MiB, expected at least 1", fix="e.g. --max-upload 64")
    port = free_port(host, port)  # before the model is loaded, which may take minutes
    from vlm.inference.engine import Engine
    from vlm.serve.gradio import layout

    shown = read_page_examples(examples) if examples else []
    given = {"options": options, "trust": trust, "allow_random": allow_random}
    engine = source if isinstance(source, Engine) else _load(source, device, given)
    world = is_tiny_model(engine.config)
    folder = tempfile.TemporaryDirectory(prefix="vlm_page_")
    shown = tiny_model_examples(Path(folder.name)) if world and not examples else shown
    uploads = upload_folder()
    uploads.max_bytes = max_upload * MIB
    page = layout.build(engine, engine.options(**generation or {}), shown, pixels=world, stream=stream)
    vars(page)["examples_folder"] = folder  # lives as long as the page
    url, public = _serve(page, host, port, share, [path for path, _ in shown])
    say(f"chat page: {url}" + (f"  public: {public}" if public else "") + "   (Ctrl-C stops it)")
    if block:
        page.block_thread()
    return page


def _serve(page: Any, host: str, port: int, share: bool, examples: Sequence[str]) -> tuple[str, str | None]:
    """Start the server of a page, with the gate before Gradio; its addresses on this machine and, if any, in public."""
    from starlette.middleware import Middleware

    from vlm.serve.gradio import theme

    uploads = upload_folder()
    uploads.keep_present()
    for name, value in STATISTICS.items():
        os.environ.setdefault(name, value)
    page.queue(max_size=WAITING, api_open=False)
    # Colab shows the page through a proxy under another name
    public_link = share or bool(os.environ.get("GRADIO_SHARE")) or _gradio().utils.colab_check()
    gate = Middleware(Gate, folder=uploads, local=is_loopback(host) and not public_link, public=public_link)
    _, url, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        theme=theme.theme(_gradio()),
        css=theme.static("chat.css"),
        head=theme.static("head.html"),
        footer_links=[],
        allowed_paths=list(examples),  # copied into the folder of uploads when clicked
        app_kwargs={"middleware": [gate], "docs_url": None, "redoc_url": None, "openapi_url": None},
        max_file_size=uploads.max_bytes,
        state_session_capacity=SESSIONS,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        ssr_mode=False,
    )
    return url, public


def _load(source: Any, device: Any, given: Mapping[str, Any]) -> Engine:
    from vlm.inference.engine import Engine

    with busy("loading the model"), quiet("vlm.checkpoint"):
        return Engine.load(source, device, **given)


def free_port(host: str, port: int | None) -> int:
    """``port``, or the first free one of ``PORTS`` when it is None.

    Raises UserError: it is in use, or none of ``PORTS`` is free.
    """
    for candidate in PORTS if port is None else (port,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                log.debug("port %d of %s: %s", candidate, host, error)
                continue
            return candidate
    expected = f"port {port}" if port is not None else f"every port from {PORTS[0]} to {PORTS[-1]}"
    raise UserError(
        f"{expected} of {host} is in use or not allowed", fix="give another with --port, or leave --port out"
    )


def _gradio() -> Any:
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError("the chat page needs Gradio", fix='pip install "vlm-compose[demo]", or run vlm chat') from error
    return gradio
