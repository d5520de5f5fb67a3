"""What one request may ask for at most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlm.common.bounds import Count, Natural, Positive


def _limit(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True)
class Limits:
    """Limits of the HTTP server; each is an option of ``vlm serve``, with this help."""

    body_mib: Count = _limit(32, "MiB of a request's body")
    images: Natural = _limit(16, "images and videos of a request, those of earlier turns included")
    medium_mib: Count = _limit(20, "MiB of an image or video, encoded")
    megapixels: Count = _limit(64, "million pixels of an image, decoded")
    frames: Count = _limit(20_000, "frames of a video, of which a model takes a few: 11 minutes at 30 a second")
    tokens: Count = _limit(4096, "longest answer, in tokens")
    choices: Count = _limit(8, "answers to one request (n)")
    waiting: Natural = _limit(256, "questions of a model that wait; further ones get 429")
    seconds: Positive = _limit(300.0, "from the arrival of a request to the end of its answer")
    header_kib: Count = _limit(32, "KiB of a request's headers")
    stall_seconds: Positive = _limit(20.0, "that a client may take to send the next part of a request, or to read")
    connections: Count = _limit(1000, "open connections")
    drain_seconds: Positive = _limit(60.0, "after SIGTERM in which accepted requests are finished")
