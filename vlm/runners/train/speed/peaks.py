"""How fast a device multiplies matrices at best."""

from __future__ import annotations

import functools
import time

import torch

from vlm.common import dist
from vlm.runners.train.speed.devices import short_name, table

SIDE, SECONDS = 2048, 0.5
"""Rows of the matrices and time that are spent on measuring."""


def listed_peak(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of a device of this name in ``dtype``; None if ``devices.yaml`` does not have it."""
    found = short_name(name)
    if found is None:
        return None
    entry = table()[found]
    peak = {torch.bfloat16: entry.bf16, torch.float16: entry.fp16}.get(dtype, entry.fp32)
    return None if peak is None else peak * 1e12


@functools.cache
def measured_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of the fastest of some matrix products, half a second long; ``threads`` of a CPU tells results apart."""
    one = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    best, end = float("inf"), time.perf_counter() + SECONDS
    module = None if device.type == "cpu" else torch.get_device_module(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        while time.perf_counter() < end or best == float("inf"):
            started = time.perf_counter()
            one @ one
            if module is not None:
                module.synchronize(device)
            best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that ``device`` reaches at best in ``dtype``: of its data sheet, else measured."""
    found = listed_peak(dist.device_name(device), dtype)
    return found or measured_peak(device, dtype, torch.get_num_threads())
