"""A small engine, and a real server in front of it in a thread of the test."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn

from vlm.inference.engine import Engine
from vlm.processors.video.recipe import VideoRecipe
from vlm.systems.minigpt4.template import Vicuna0
from vlm.testing import tiny_engine

from ..inference.conftest import LLM, SIZES
from ..inference.small import CASE
from ..runners.lynx_small import moving_square

IMAGE = CASE / "image.png"
OTHER = CASE / "data" / "cc_sbu_align" / "image" / "2.jpg"


def small_engine() -> Engine:
    """A random model of images and videos that answers in a few milliseconds."""
    torch.set_num_threads(1)
    engine = tiny_engine(LLM, Vicuna0(Vicuna0.Config()), **SIZES)
    engine.processor.video = VideoRecipe(VideoRecipe.Config(num_frames=2), engine.processor.image)
    return engine


@contextmanager
def running(app: Any, **options: Any) -> Iterator[str]:
    """The address of a server that runs ``app`` on a free port; ``options`` of ``uvicorn.Config``."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off", **options)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def data_url(file: Path | bytes, kind: str = "image/png") -> str:
    """A file, or its bytes, as a ``data:`` URL."""
    data = file if isinstance(file, bytes) else file.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(file: Path | bytes, kind: str = "image/png") -> dict[str, Any]:
    """An image as a part of a message."""
    return {"type": "image_url", "image_url": {"url": data_url(file, kind)}}


def video_file(folder: Path) -> Path:
    """A video of a moving square."""
    return moving_square(folder / "square.mp4", (255, 0, 0))
