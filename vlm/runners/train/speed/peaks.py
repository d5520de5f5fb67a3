"""How fast a device multiplies matrices at best."""

from __future__ import annotations

import functools
import time

import torch

from vlm.common import dist

# dense TFLOP/s from the vendors' data sheets, as (16 bit with float32 sums, float32); those with "sparsity" are halved
TABLE: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250.0, 75.0),  # NVIDIA HGX B200, an eighth
    ("H200 NVL", 835.5, 60.0),  # NVIDIA H200
    ("H200", 989.5, 67.0),
    ("H100 PCIe", 756.0, 51.0),  # NVIDIA H100
    ("H100 NVL", 835.5, 60.0),
    ("H100", 989.5, 67.0),
    ("A100", 312.0, 19.5),  # NVIDIA A100
    ("A10G", 70.0, 35.0),  # Amazon's figure for the instances that have it
    ("A10", 125.0, 31.2),
    ("A40", 149.7, 37.4),
    ("L40S", 362.0, 91.6),
    ("L40", 181.0, 90.5),
    ("L4", 121.0, 30.3),
    ("RTX 4090", 165.2, 82.6),  # NVIDIA Ada architecture, appendix A
    ("RTX 3090", 71.0, 35.6),  # NVIDIA GA102 architecture, table 2
    ("V100", 125.0, 15.7),
    ("T4", 65.0, 8.1),
)
"""Part of the device's name -> its peaks; the first that fits counts."""
SIDE, SECONDS = 2048, 0.5
"""Rows of the matrices and time that are spent on measuring."""


def listed_peak(name: str, short: bool) -> float | None:
    """FLOP/s of a device of this name, in 16 bit if ``short``; None if it is not in :data:`TABLE`."""
    row = next((row for row in TABLE if row[0] in name), None)
    return None if row is None else (row[1] if short else row[2]) * 1e12


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
    found = listed_peak(dist.device_name(device), dtype is not torch.float32)
    return found or measured_peak(device, dtype, torch.get_num_threads())
