"""What a device can do: a table, measurements of this machine's CPU, and what finished runs taught."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vlm.common import dist
from vlm.common.errors import UserError, nearest
from vlm.common.owned import replace_text
from vlm.common.paths import cache_root
from vlm.runners.plan.fake import Work
from vlm.runners.train.speed.devices import table

GIB = 2**30
ASSUMED = 0.5
"""Share of the device's limits that a step reaches, until a run has been measured."""


@dataclass(frozen=True)
class Device:
    """A device as a plan sees it.

    Attributes:
        memory: bytes.
        flops: dtype -> FLOP/s of dense products.
        bandwidth: bytes/s of its memory.
        source: where the numbers are from.
    """

    name: str
    kind: str  # torch's type of device
    memory: int
    flops: dict[str, float]
    bandwidth: float
    source: str

    @property
    def torch_device(self) -> torch.device:
        """As torch names it."""
        return torch.device(self.kind)

    def seconds(self, work: Work) -> float:
        """Seconds of ``work`` at the device's limits: each operation computes or moves, whichever takes longer."""
        total = 0.0
        for dtype, operations in work.by_kind.items():
            peak = self.flops.get(dtype, self.flops["float32"])
            total += sum(max(flops / peak, moved / self.bandwidth) for flops, moved in operations)
        return total


def device_named(name: str) -> Device:
    """The device that the table calls ``name``, or this machine's CPU. Raises UserError: there is none."""
    if name == "cpu":
        return this_cpu()
    known = table()
    if name not in known:
        raise UserError(f"--gpu {name}: unknown device{nearest(name, [*known, 'cpu'])}")
    entry = known[name]
    flops = {"bfloat16": entry.bf16, "float16": entry.fp16, "float32": entry.fp32}
    return Device(
        name,
        entry.kind,
        int(entry.memory_gib * GIB),
        {k: v * 1e12 for k, v in flops.items() if v},
        entry.bandwidth_gbs * 1e9,
        entry.source,
    )


@cache
def this_cpu() -> Device:
    """This machine's CPU with the threads of this process, measured for a second."""
    flops = {"float32": _matmul(torch.float32), "bfloat16": _matmul(torch.bfloat16)}
    flops["float16"] = flops["float32"]
    source = f"measured here, {torch.get_num_threads()} threads"
    return Device("cpu", "cpu", dist.free_bytes(torch.device("cpu")), flops, _bandwidth(), source)


def _matmul(dtype: torch.dtype, size: int = 1024, repeat: int = 3) -> float:
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = min(_timed(lambda: a @ b) for _ in range(repeat + 1))
    return 2 * size**3 / best


def _bandwidth(size: int = 2**24) -> float:
    a, b = torch.zeros(size), torch.zeros(size)
    best = min(_timed(lambda: b.copy_(a)) for _ in range(3))
    return 8 * size / best


def _timed(action: Any) -> float:
    start = time.perf_counter()
    action()
    return max(time.perf_counter() - start, 1e-9)


def calibration_file() -> Path:
    """Where efficiencies of finished runs are kept."""
    return cache_root() / "plan" / "devices.json"


def learnt() -> dict[str, Any]:
    """Device name -> precision -> {efficiency, runs}; without what was not kept, or is damaged in the file."""
    try:
        data = json.loads(calibration_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    devices = data.items() if isinstance(data, dict) else ()
    return {name: {k: v for k, v in own.items() if _is_entry(v)} for name, own in devices if isinstance(own, dict)}


def _is_entry(value: Any) -> bool:
    numbers = [value.get(key) for key in ("efficiency", "runs")] if isinstance(value, dict) else [None]
    return all(isinstance(number, int | float) and number > 0 for number in numbers)


def efficiency(device: Device, precision: str) -> tuple[float, str]:
    """Share of the device's limits that a step reaches, and where that is from."""
    found = learnt().get(device.name, {}).get(precision)
    if found is not None:
        return float(found["efficiency"]), f"measured in {found['runs']} runs on {device.name} ({precision})"
    return ASSUMED, f"assumed, no run on {device.name} ({precision}) has been compared yet: vlm plan RUN"


def learn(device: Device, precision: str, reached: float) -> float:
    """Keep the efficiency that a run reached; the mean over the runs so far is used from now on."""
    data = learnt()
    own = data.setdefault(device.name, {})
    before = own.get(precision) or {"efficiency": 0.0, "runs": 0}
    runs = before["runs"] + 1
    mean = (before["efficiency"] * before["runs"] + reached) / runs
    own[precision] = {"efficiency": round(mean, 4), "runs": runs}
    file = calibration_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(data, indent=1) + "\n")
    return mean
