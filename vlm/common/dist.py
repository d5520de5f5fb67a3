"""Devices, processes and seeds: the only module that names an accelerator.

One process without any environment variable just works. Under ``torchrun`` (RANK, WORLD_SIZE,
LOCAL_RANK) or SLURM (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID together with MASTER_ADDR) a process
group is started: nccl on CUDA devices, gloo elsewhere.
"""

from __future__ import annotations

import datetime
import gc
import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as torch_dist

from vlm.common.bounds import DEVICE_NAMES
from vlm.common.errors import UserError
from vlm.common.processes import ending
from vlm.common.processes.network import INTERFACE, towards
from vlm.common.processes.peers import Peers, ProcessLostError, store_of
from vlm.common.processes.threads import Threads, choose, load

log = logging.getLogger(__name__)

MIB = 2**20
TIMEOUT = datetime.timedelta(hours=2)
"""Of a collective call: other processes may read large files meanwhile."""
START = datetime.timedelta(minutes=5)
"""Within which all processes must have joined."""


@dataclass(frozen=True)
class World:
    """Who this process is: ``rank`` of ``size`` processes, ``local_rank`` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def world_from_env(env: dict[str, str] | None = None) -> World:
    """Read rank and size from torchrun's variables, else SLURM's, else one process.

    SLURM's variables count only when MASTER_ADDR is set: an interactive allocation has them too.

    Raises:
        UserError: RANK is set but another variable of torchrun is missing.
    """
    env = dict(os.environ) if env is None else env
    if "RANK" in env or "WORLD_SIZE" in env:
        missing = [k for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if k not in env]
        if missing:
            raise UserError(
                f"the environment has part of torchrun's variables; missing: {', '.join(missing)}",
                fix="start with torchrun, or unset RANK, WORLD_SIZE and LOCAL_RANK",
            )
        return World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]))
    if "SLURM_PROCID" in env and "MASTER_ADDR" in env:
        rank, size = int(env["SLURM_PROCID"]), int(env.get("SLURM_NTASKS", "1"))
        local = env.get("SLURM_LOCALID")
        return World(rank, size, int(local) if local is not None else rank % max(accelerator_count(), 1))
    return World()


def accelerator_count() -> int:
    """Number of accelerators this process can see."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def split_accelerators(programs: int, each: int = 1) -> list[dict[str, str]]:
    """The variables by which each of so many programs on this machine sees ``each`` accelerators of its own.

    Empty where there is nothing to divide; where there are too few, programs share them.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(accelerator_count()))) if given is None else [n for n in given.split(",") if n.strip()]
    if programs == 1 or len(names) < 2 or pick_device().type != "cuda":
        return [{} for _ in range(programs)]
    picked = [[names[(program * each + k) % len(names)] for k in range(each)] for program in range(programs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))} for own in picked]


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device for a name of the ``device:`` key: auto, cpu, cuda, mps, xpu, or one with an index.

    ``auto`` takes the machine's accelerator if there is one; a name without index takes ``local_rank``.

    Raises:
        UserError: the machine has no such device.
    """
    result = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if not DEVICE_NAMES.allows(name):
        raise UserError(f"device {name!r} is not known (allowed: {DEVICE_NAMES.words})")
    if name == "auto":
        name = result.type if result is not None else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    if result is None or result.type != kind:
        raise UserError(
            f"device {name!r} was asked for, but this machine has {result.type if result else 'no accelerator'}",
            fix="set run.device=auto or run.device=cpu",
        )
    position = int(index) if index else (0 if kind == "mps" else local_rank)
    if position >= accelerator_count():
        raise UserError(
            f"device {kind}:{position} was asked for, but this machine has {accelerator_count()}",
            fix="start as many processes per machine as it has devices",
        )
    return torch.device(kind, position)


def gpu(index: int) -> torch.device:
    """The accelerator of that index. Raises UserError: the machine has none, or not so many."""
    count = accelerator_count()
    if not 0 <= index < count:
        has = f"{count}, numbered from 0" if count else "none"
        raise UserError(f"GPU {index} was asked for, but this machine has {has}", fix="use another one, or the CPU")
    return pick_device("auto", index)


_watching: list[Peers] = []


def init(device: str = "auto", env: dict[str, str] | None = None, workers: int = 0) -> tuple[World, torch.device]:
    """Join the process group that the environment describes (if any); returns this process's place and its device.

    Also chooses the number of threads, see :mod:`vlm.common.processes.threads`; ``workers``: loader processes.
    """
    world = world_from_env(env)
    picked = pick_device(device, world.local_rank)
    limit_threads(workers)
    if picked.type not in ("cpu", "mps"):
        torch.accelerator.set_device_index(picked.index or 0)
    if world.size > 1 and not torch_dist.is_initialized():
        _join(world, {"cuda": "nccl", "xpu": "xccl"}.get(picked.type, "gloo"))
    return world, picked


def _join(world: World, backend: str) -> None:
    """Start the process group; the processes watch each other before they exchange anything."""
    try:
        store = next(torch_dist.rendezvous("env://", world.rank, world.size, timeout=START))[0]
    except RuntimeError as error:
        where = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        reason = str(error).splitlines()[0]
        raise UserError(
            f"process {world.rank} of {world.size} cannot join the others at {where} ({reason})",
            fix="check MASTER_ADDR and MASTER_PORT, and that process 0 has started and can be reached from here",
        ) from error
    own = store_of(store, torch_dist.PrefixStore, START)
    _watching[:] = [Peers(own, world.rank, world.size)]
    ending.mark_several(_watching[0])
    if len(_watching[0].machines) > 1 and (name := towards(os.environ.get("MASTER_ADDR", ""))):
        # gloo takes the address that the machine's own name has, which is often that of the machine alone
        log.debug("%s=%s", INTERFACE, os.environ.setdefault(INTERFACE, name))
    group_store = torch_dist.PrefixStore("vlm.group", store)
    try:
        torch_dist.init_process_group(
            backend, store=group_store, rank=world.rank, world_size=world.size, timeout=TIMEOUT
        )
    except RuntimeError as error:
        if lost := _watching[0].lost():
            raise lost from error
        raise UserError(
            f"process {world.rank} of {world.size} has no connection to the others ({str(error).splitlines()[0]})",
            fix=f"set {INTERFACE} (NCCL: NCCL_SOCKET_IFNAME) to the network interface that the machines share, see "
            "`ip addr`",
        ) from error
    log.debug("rank %d of %d, backend %s", world.rank, world.size, backend)


def destroy() -> None:
    """Leave the process group, if there is one."""
    while _watching:
        _watching.pop().close()
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


@contextmanager
def joined(device: str = "auto", workers: int = 0) -> Iterator[tuple[World, torch.device]]:
    """:func:`init`, and :func:`destroy` at the end; a process that fails tells the others.

    Raises ProcessLostError: in place of what a collective call raises after another process has ended.
    """
    ended = False
    try:
        yield init(device, workers=workers)
        ended = True
        if _watching:
            _watching[0].close()
            barrier()  # the process that keeps the store outlives the others' last look at it
    except RuntimeError as error:
        lost = _watching[0].lost() if _watching else None
        if lost is None:
            raise
        raise lost from error
    finally:
        fault = sys.exc_info()[1]
        if _watching and not ended and not isinstance(fault, ProcessLostError):
            _watching[0].fail(fault or "stopped")
        gc.collect()  # the model's wrapper must not outlive its process group: gloo may then abort at exit
        destroy()


def limit_threads(workers: int = 0) -> Threads:
    """Choose the number of threads of this process, use it, log it, and warn if there are not enough cores."""
    threads = choose(torch.get_num_threads(), workers)
    if threads.count != torch.get_num_threads():
        torch.set_num_threads(threads.count)
    log.info("%s", threads.line())
    if problem := threads.problem(load()):
        log.warning("%s", problem)
    return threads


def rank() -> int:
    """This process's rank; 0 without a group."""
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a group."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is rank 0."""
    return rank() == 0


def peers() -> Peers | None:
    """What the processes of the run know of each other; None without a group."""
    return _watching[0] if _watching else None


def barrier() -> None:
    """Wait for all processes."""
    if torch_dist.is_initialized():
        torch_dist.barrier()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum ``tensor`` over the processes, in place; returned for chaining."""
    if torch_dist.is_initialized():
        torch_dist.all_reduce(tensor, op=torch_dist.ReduceOp.SUM)
    return tensor


def sum_dtype(device: torch.device) -> torch.dtype:
    """Dtype for sums of counts and losses: float64 where the device supports it."""
    return torch.float32 if device.type == "mps" else torch.float64


def gather_objects(value: Any) -> list[Any]:
    """The ``value`` of every rank, in rank order, on every rank. Values must be picklable."""
    if not torch_dist.is_initialized():
        return [value]
    result: list[Any] = [None] * world_size()
    torch_dist.all_gather_object(result, value)
    return result


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value`` on every rank."""
    return gather_objects(value)[0]


_notes: dict[str, str] = {}


def tell(key: str, text: str) -> None:
    """Leave a text for the other processes, from any thread. Raises RuntimeError: they cannot be reached."""
    if _watching:
        _watching[0].tell(key, text)
    else:
        _notes[key] = text


def told(key: str) -> str | None:
    """The text that a process left under ``key``; None: none did so far. Raises RuntimeError: a process is gone."""
    if not _watching:
        return _notes.get(key)
    if (text := _watching[0].told(key)) is None and (reason := _watching[0].reason()):
        raise RuntimeError(reason)
    return text


def seed_everything(seed: int, rank: int = 0, deterministic: bool = False) -> None:
    """Seed python, numpy and torch (all devices) with ``seed + rank``, as the published runner does.

    Args:
        seed: the run's seed.
        rank: this process's rank.
        deterministic: also ask torch for deterministic kernels and stop cudnn's benchmarking.
    """
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: allocated on the device; on CPU and MPS the process's largest resident size."""
    if device.type not in ("cpu", "mps"):
        return torch.get_device_module(device).max_memory_allocated(device) / MIB
    if sys.platform == "win32":
        return 0.0
    import resource  # no such module on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def device_rng_state(device: torch.device) -> torch.Tensor | None:
    """State of the device's generator (None on a CPU, whose generator is torch's global one)."""
    if device.type in ("cpu", "mps"):
        return torch.mps.get_rng_state() if device.type == "mps" else None
    return torch.get_device_module(device).get_rng_state(device)


def set_device_rng_state(state: torch.Tensor | None, device: torch.device) -> None:
    """Restore what :func:`device_rng_state` returned."""
    if state is not None and device.type == "mps":
        torch.mps.set_rng_state(state)
    elif state is not None:
        torch.get_device_module(device).set_rng_state(state, device)


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native enough to train with (CPU: always, through torch)."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def supports_fused_optimizer(device: torch.device) -> bool:
    """Whether torch has a fused kernel of AdamW (on a CPU 4 to 10 times faster than the others, as measured)."""
    return device.type in ("cuda", "xpu", "cpu")


def device_name(device: torch.device) -> str:
    """A name for logs and for the provenance of a checkpoint."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


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
