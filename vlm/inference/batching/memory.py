"""How much memory is free where a model is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

CGROUP = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Limit and use of a container, in the two versions of Linux's control groups."""


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be used on a device; of the machine's memory no more than a container may have."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _available()
    for limit, used in CGROUP:
        try:
            values = [int((Path("/sys/fs/cgroup") / name).read_text()) for name in (limit, used)]
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
        free = min(free, max(0, values[0] - values[1]))
    return free


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    pages, size = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
    return pages * size // 2
