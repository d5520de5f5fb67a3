"""The plan of a run on a kind of device: memory by part, work, time, disk."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vlm.common.registry import resolve
from vlm.runners.plan.batch import Batches, Lengths, batch_size_of, batches_of, summary
from vlm.runners.plan.devices import GIB, Device, efficiency
from vlm.runners.plan.model import Faked, PartSize, build_fake
from vlm.runners.plan.shards import Share, share_of
from vlm.runners.plan.step import Trace, trace_step
from vlm.runners.train.optim import Precision, pick_precision
from vlm.runners.train.parallel.mesh import check_parallel

log = logging.getLogger(__name__)

ORDER = ("weights", "buffers", "gradients", "optimiser", "activations", "loss", "workspace", "batch")
MORE = ("gathered", "communication", "process", "allowance")
ALLOWANCE = 1.0
"""GiB of an accelerator kept free for what is not predicted: context, workspaces of kernels, fragmentation, NCCL."""


@dataclass(frozen=True)
class Request:
    """Where a run shall be planned.

    Attributes:
        device: of each process.
        processes: one for each device.
        lengths: of the samples, instead of the datasets.
        allowance: bytes of every device for what is not predicted.
        price: of an hour of a device; None: no cost is given.
    """

    device: Device
    processes: int = 1
    lengths: Lengths | None = None
    allowance: int = 0
    price: float | None = None


@dataclass
class Plan:
    """What a run will need. Bytes are those of one process."""

    device: str
    processes: int
    precision: str
    parts: list[PartSize]
    memory: dict[str, int]  # at the peak, by what it is for
    peak: int
    peak_at: str
    capacity: int
    fits: bool
    batch_size: int
    micro_batches: int
    samples: int  # of a step over all processes
    positions: dict[str, float]
    data: str
    flops: float  # of a step of one process
    seconds: float  # of a step
    efficiency: float
    efficiency_from: str
    steps: int | None
    hours: float | None
    cost: float | None
    checkpoint: int  # bytes of one
    checkpoints: int
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def free(self) -> int:
        """Bytes that are left; negative: missing."""
        return self.capacity - self.peak

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**dataclasses.asdict(self), "free": self.free, "samples_per_second": self.samples / self.seconds}


class Planner:
    """Plans one configuration; the fake model is built once for all batch sizes.

    Raises as :func:`~vlm.runners.plan.model.build_fake`, and ConfigError: the mesh does not fit the processes.
    """

    def __init__(self, cfg: Any, request: Request) -> None:
        check_parallel(cfg.run, cfg.model.llm.config, request.processes, request.device.torch_device)
        self.cfg, self.request = cfg, request
        self.precision = precision_on(cfg.run, request.device)
        self.faked: Faked = build_fake(cfg, request.device.torch_device, self.precision)
        self.task = resolve("task", cfg.run.task)()

    def plan(self, cfg: Any | None = None) -> Plan:
        """The plan; ``cfg`` is the configuration with another batch size.

        Raises:
            DataError: the samples' lengths are not known.
        """
        cfg, request = cfg or self.cfg, self.request
        batches = batches_of(cfg, self.faked.model, request.processes, request.lengths)
        trace = self.trace(batches, batches.largest)
        timed = trace if batches.typical is batches.largest else self.trace(batches, batches.typical)
        return self._assemble(cfg, batches, trace, timed)

    def trace(self, batches: Batches, batch: Any) -> Trace:
        """One micro-batch; the run's processes have as many."""
        return trace_step(self.faked, self.task, batch, self.request.device.seconds, batches.micro > 1)

    def _assemble(self, cfg: Any, batches: Batches, trace: Trace, timed: Trace) -> Plan:
        request, still, run = self.request, self.faked.still, cfg.run
        device = request.device
        share = share_of(self.faked.model, run.parallel, request.processes, device.memory)
        at, memory = peak_of(self.faked, trace, share, request.allowance)
        if device.kind == "cpu":
            memory["process"] = process_bytes()
        precision = str(self.precision.amp_dtype or torch.float32).removeprefix("torch.")
        reached, learnt_from = efficiency(device, precision)
        update = device.seconds(still.work) * share.optimizer if share.optimizer else device.seconds(still.work)
        seconds = (timed.seconds * batches.micro + update) / reached
        steps = batches.steps
        hours = None if steps is None else steps * seconds / 3600
        price = request.price
        peak = sum(memory.values())
        return Plan(
            device=device.name,
            processes=request.processes,
            precision=precision,
            parts=still.parts,
            memory={name: memory[name] for name in (*ORDER, *MORE) if memory[name]},
            peak=peak,
            peak_at=at,
            capacity=device.memory,
            fits=peak <= device.memory,
            batch_size=batch_size_of(cfg),
            micro_batches=batches.micro,
            samples=batches.samples,
            positions=summary(batches.positions),
            data=batches.source,
            flops=timed.flops * batches.micro + still.work.flops,
            seconds=seconds,
            efficiency=reached,
            efficiency_from=learnt_from,
            steps=steps,
            hours=hours,
            cost=None if hours is None or price is None else hours * price * request.processes,
            checkpoint=still.saved,
            checkpoints=kept(run, steps),
            settings=settings_of(cfg),
            notes=list(share.notes),
        )


def precision_on(run: Any, device: Device) -> Precision:
    """The run's precision on a device; ``auto`` is bf16 where the device has it."""
    dtype = run.amp_dtype
    if dtype == "auto":
        dtype = "bf16" if "bfloat16" in device.flops else "fp16"
    return pick_precision(run.amp, dtype, torch.device(device.kind))


def peak_of(faked: Faked, trace: Trace, share: Share, allowance: int) -> tuple[str, Counter[str]]:
    """The phase that holds most, and its bytes by what they are for."""
    still = faked.still
    fixed = Counter(
        weights=share.weights,
        buffers=still.buffers,
        optimiser=round(still.optimizer * share.optimizer),
        communication=share.copies,
        allowance=allowance,
    )
    update = Counter(
        gradients=round(still.gradients * share.gradients), workspace=round(still.update * (share.optimizer or 1.0))
    )
    phases = {"update of the weights": fixed + update}
    for name, held in trace.peaks.items():
        own = Counter(held)
        own["gradients"] = round(own["gradients"] * share.gradients)
        phases[name] = fixed + own + Counter(gathered=share.gathered)
    at = max(phases, key=lambda name: phases[name].total())
    return at, phases[at]


@cache
def process_bytes() -> int:
    """Resident memory of Python and the libraries, as this process has it when it first asks."""
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return 0
    return pages * resource.getpagesize()


def kept(run: Any, steps: int | None) -> int:
    """Checkpoints that are on the disk at the end: the newest, the best, those kept every so many steps."""
    saved = steps // run.save_freq if steps and run.save_freq else run.max_epoch
    newest = saved if run.keep_last == 0 else min(run.keep_last, max(saved, 1))
    more = steps // run.keep_every if steps and run.keep_every else 0
    return int(max(newest, 1) + more + 1)


def settings_of(cfg: Any) -> dict[str, Any]:
    """The options that decide memory, for the page and the knobs."""
    run, options = cfg.run, cfg.model.llm.options
    return {
        "activation_checkpointing": run.activation_checkpointing,
        "amp": run.amp,
        "shard": run.parallel.shard,
        "offload": run.parallel.offload,
        "quantize": options.get("quantize"),
        "lora": bool(options.get("lora")),
        "optimizer": run.optimizer,
        "global_batch": run.global_batch,
        "packing": None if run.packing is None else run.packing.max_tokens,
    }


def check_capacity(plan: Plan) -> str:
    """Whether it fits, in words."""
    free = plan.free / GIB
    return f"fits, {free:.1f} GiB free" if plan.fits else f"does not fit, {-free:.1f} GiB too much"
