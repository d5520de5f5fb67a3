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
BUSY = 1.0
"""Runnable processes per core, the mean of a minute, from which a machine is oversubscribed."""


def wait_passively(env: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep, unless the user chose otherwise; counts only before torch is imported."""
    if not any(name in env for name in (WAIT, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        env[WAIT] = "PASSIVE"


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: its affinity, and the quota of its control group; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_quota(cgroup) or cores)))


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time that the container gets, or None without a limit."""
    try:
        if (cgroup / "cpu.max").is_file():
            most, period = (cgroup / "cpu.max").read_text().split()
        else:
            files = [cgroup / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
            most, period = (file.read_text().strip() for file in files)
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
