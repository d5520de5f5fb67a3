"""The table of accelerators (``devices.yaml``): memory, dense peaks, bandwidth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlm.config.tree import parse_file


@dataclass(frozen=True)
class Accelerator:
    """An entry, see the head of ``devices.yaml``; TFLOP/s, None: the device has no such arithmetic."""

    kind: str
    match: tuple[str, ...]
    memory_gib: float
    bf16: float | None
    fp16: float | None
    fp32: float
    bandwidth_gbs: float
    source: str


@cache
def table() -> dict[str, Accelerator]:
    """Short name -> entry."""
    data = parse_file(Path(__file__).with_name("devices.yaml")).data
    return {str(name): Accelerator(**{**entry, "match": tuple(entry["match"])}) for name, entry in data.items()}


def short_name(device_name: str) -> str | None:
    """The entry of what torch calls ``device_name``, such as ``NVIDIA A100-SXM4-80GB``; None: not in the table."""
    words = device_name.upper().replace("-", " ").split()
    fits = (n for n, entry in table().items() if all(any(w == m.upper() for w in words) for m in entry.match))
    return next(fits, None)
