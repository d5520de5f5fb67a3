"""How many threads a process computes with, and whether the machine has cores for them.

The count follows from what the process may use (affinity, the quota of its container) divided by the processes of this
machine, never from the load: results depend on it in their last bits, and a resumed run must be the same run. On a busy
machine it is waiting that hurts: OpenMP's threads spin at the end of each operation while the one they wait for has no
core. :func:`wait_passively` lets them sleep instead (measured in docs/guides/train_large.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

COUNT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a user sets the number of threads."""
WAIT = "OMP_WAIT_POLICY"
CGROUP = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
"""Names the group of this process; a quota of a group above counts too."""
BUSY = 1.0
"""Runnable processes per core, the mean of a minute, from which a machine is oversubscribed."""


def wait_passively(env: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep, unless the user chose otherwise; counts only before torch is imported."""
    if not any(name in env for name in (WAIT, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        env[WAIT] = "PASSIVE"


def usable_cores(cgroup: Path = CGROUP, own: Path = OWN_GROUP) -> int:
    """Cores that this process may use: its affinity, and the quota of its control groups; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(cgroup, own) if (quota := _quota(folder)) is not None]
    return max(1, min([cores, *map(int, quotas)]))


def _groups(cgroup: Path, own: Path) -> list[Path]:
    """The folders of the control groups of this process, from the root down; those of version 1 are below ``cpu``."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines() if line.count(":") >= 2]
    except OSError:
        lines = []
    names = {"" if not kinds else "cpu": name for _, kinds, name in lines if not kinds or "cpu" in kinds.split(",")}
    result = []
    for root in ("", "cpu"):
        parts = [part for part in names.get(root, "").split("/") if part]
        if ".." not in parts:  # seen from a namespace of its own, the group may lie outside
            result += [cgroup.joinpath(root, *parts[:count]) for count in range(len(parts) + 1)]
    return result


def _quota(group: Path) -> float | None:
    """Cores' worth of time that a control group gets, or None without a limit."""
    try:
        if (group / "cpu.max").is_file():
            most, period = (group / "cpu.max").read_text().split()
        else:
            most, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(most) / float(period) if most not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def load() -> float | None:
    """Runnable processes of the machine, mean of the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


@dataclass(frozen=True)
class Threads:
    """The threads of one process, and what they were chosen from."""

    count: int  # of this process
    workers: int  # loader processes of one thread each
    processes: int  # of the run on this machine
    cores: int  # that all of them may use
    given: str = ""  # the variable that sets ``count``

    @property
    def wanted(self) -> int:
        """Threads of all processes on this machine that may compute at once."""
        return self.processes * (self.count + self.workers)

    def line(self) -> str:
        """For the log."""
        by = f" (by {self.given})" if self.given else ""
        workers = f" and {self.workers} loader worker{'s' if self.workers > 1 else ''}" if self.workers else ""
        each = f" in each of {self.processes} processes" if self.processes > 1 else ""
        many = "s" if self.count > 1 else ""
        return f"{self.count} thread{many}{by}{workers}{each}; {self.cores} cores usable"

    def problem(self, busy: float | None) -> str:
        """Why steps will be slow, empty if nothing is known: more own threads than cores, or others use them.

        Args:
            busy: :func:`load` before the threads began.
        """
        if self.processes * self.count > self.cores:
            return (
                f"oversubscribed: {self.processes} processes x {self.count} threads on {self.cores} cores; set "
                f"OMP_NUM_THREADS={max(1, self.cores // self.processes)}"
            )
        everything = os.cpu_count() or 1
        if busy is not None and busy > BUSY * everything:
            fewer = "; fewer threads (OMP_NUM_THREADS=1) may be faster" if self.count > 1 else ""
            return f"the machine is busy: load {busy:.1f} on {everything} cores, so steps will be slow{fewer}"
        return ""


def choose(default: int, workers: int = 0, env: Mapping[str, str] | None = None, cores: int | None = None) -> Threads:
    """The threads of this process.

    Args:
        default: number that torch would use, or that the program set; never exceeded.
        workers: loader processes of this process, which get a core each, up to half of them.
        env: LOCAL_WORLD_SIZE (torchrun) or SLURM_NTASKS_PER_NODE counts the processes; OMP_NUM_THREADS decides.
        cores: usable cores of this machine; found out by default.
    """
    env = os.environ if env is None else env
    cores = usable_cores() if cores is None else cores
    local = next((env[n] for n in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE") if env.get(n, "").isdigit()), "1")
    processes = max(1, int(local))
    given = next((name for name in COUNT if env.get(name)), "")
    share = max(1, cores // processes)
    count = default if given else max(1, min(default, share - min(workers, share // 2)))
    return Threads(count, workers, processes, cores, given)
