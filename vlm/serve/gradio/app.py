"""Loads models and serves their chat page."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError
from vlm.common.logging import busy, quiet, say
from vlm.serve.feedback.folder import check_folder
from vlm.serve.gradio import mount
from vlm.serve.gradio.examples import read_page_examples
from vlm.serve.gradio.mount import SESSIONS, THREADS
from vlm.serve.gradio.uploads import MAX_FILE, MIB

if TYPE_CHECKING:
    import torch

    from vlm.config.api import Config
    from vlm.inference.engine import Engine

    Source = str | Path | Config | Engine

log = logging.getLogger(__name__)

PORTS = range(7860, 7960)
"""Tried in order when no port is given."""


def launch(
    source: Source | Sequence[Source] | Mapping[str, Source],
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
    feedback: str | Path | None = None,
    password: Callable[[str], bool] | None = None,
    block: bool = True,
    trust: bool = False,
) -> Any:
    """Load one or several models and serve their page; several get the same questions, side by side.

    A browser reaches no file but uploads and examples, see :mod:`vlm.serve.gradio.gate`.

    Args:
        source, options, trust, allow_random: see ``Engine.load``; the first may also be an engine, a list, or a mapping
            of the names that the page shows.
        host: address to listen on.
        port: None takes the first free one.
        share: also make a public link.
        device: None leaves it to the configuration.
        generation: changes to the generation options that the page's settings start from.
        stream: show answers as they are written; False: only when they are complete.
        examples: file of images and questions to click, see ``read_page_examples``; None: those of the embedded model.
        max_upload: size of the largest image or video, in MiB.
        feedback: folder that answers which visitors rate or correct are kept in, as a dataset, see
            :mod:`vlm.serve.feedback.folder`; None: nothing is kept, and the page does not ask.
        password: whether a password, which the browser asks for, opens the page; None: it is open.
        block: wait until the page is stopped; False returns the running ``gradio.Blocks``.

    Raises:
        UserError: gradio is not installed, the port is in use, an unusable ``max_upload`` or ``feedback``, or a model
            cannot be loaded.
    """
    mount.need_gradio()
    port = free_port(host, port)  # before the models are loaded, which may take minutes
    if examples:
        read_page_examples(examples)
    if feedback is not None:
        check_folder(feedback)
    listed: list[Any] = list(source) if isinstance(source, list | tuple) else [source]
    sources: dict[str, Any] = dict(source) if isinstance(source, Mapping) else dict(zip(mount.names_of(listed), listed))
    given = {"options": options, "trust": trust, "allow_random": allow_random}
    engines = {name: _engine(found, device, given) for name, found in sources.items()}
    page, shown = mount.build(engines, generation, stream, examples, max_upload, feedback)
    url, public = _serve(page, host, port, share, shown, password)
    say(f"chat page: {url}" + (f"  public: {public}" if public else "") + "   (Ctrl-C stops it)")
    if block:
        page.block_thread()
    return page


def _serve(
    page: Any, host: str, port: int, share: bool, examples: list[str], password: Callable[[str], bool] | None
) -> tuple[str, str | None]:
    """Start the server of a page, with the gate before Gradio; its addresses on this machine and, if any, in public."""
    # Colab shows the page through a proxy under another name
    public_link = share or bool(os.environ.get("GRADIO_SHARE")) or mount.need_gradio().utils.colab_check()
    _, url, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        allowed_paths=examples,  # copied into the folder of uploads when clicked
        app_kwargs=mount.app_options(mount.gate(host, public_link, password)),
        state_session_capacity=SESSIONS,
        max_threads=THREADS,
        **mount.look(),
    )
    return url, public


def _engine(source: Source, device: Any, given: Mapping[str, Any]) -> Engine:
    from vlm.inference.engine import Engine

    if isinstance(source, Engine):
        return source
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
