"""The process that trains one run, and asks its model: whatever happens in it, the study goes on.

Its parent keeps one process that has imported everything and computed nothing; children are forked from that, which
takes milliseconds where a new process takes many seconds. A child whose parent is gone saves its run and ends.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from vlm.common.errors import UserError
from vlm.common.logging import say, setup_logging
from vlm.runners.study.folder import config_file, log_file, run_folder
from vlm.runners.study.running.asking import Asking, ask_all
from vlm.runners.study.running.locks import FileLock
from vlm.runners.study.running.marks import Done, read_done, write_done

log = logging.getLogger(__name__)

POLL = 0.5
"""Seconds between two looks at a run that trains."""
USER_FAULT = 2
COUNTED = ("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
"""Lets torch look for accelerators without starting their driver, which would not survive a fork."""


@dataclass(frozen=True)
class Job:
    """What a child does.

    Attributes:
        study: folder of the study.
        run: hash of the run; its configuration is in :func:`config_file`.
        asked: questions to its model afterwards.
        threads: of each of its processes.
        processes: that train, on this machine.
        plugins: modules to import first.
        environment: variables to set.
    """

    study: Path
    run: str
    asked: Sequence[Asking] = ()
    threads: int = 1
    processes: int = 1
    plugins: Sequence[str] = ()
    environment: tuple[tuple[str, str], ...] = ()


class Children:
    """Starts the children of all workers of this process."""

    def __init__(self) -> None:
        os.environ.setdefault(*COUNTED)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["vlm.runners.study.running.preload"])

    def warm(self) -> None:
        """Let the importing begin, while this process does something else."""
        forkserver.ensure_running()

    def __call__(self, job: Job, lock: FileLock, watch: Callable[[], int]) -> int:
        """Do a job in a process of its own.

        Args:
            job: what to do.
            lock: of its run, which the child holds as well.
            watch: asked now and then: 1: the run is to be saved and stopped, 2: its process is to end at once.

        Returns:
            its exit code; minus the signal that ended it.
        """
        log_file(job.study, job.run).parent.mkdir(parents=True, exist_ok=True)
        process = self._context.Process(target=main, args=(job, lock), daemon=False)
        process.start()
        told = 0
        while not wait([process.sentinel], timeout=POLL):
            if (wanted := watch()) > told:
                (process.kill if wanted > 1 else process.terminate)()
                told = wanted
        process.join()
        code = process.exitcode or 0
        process.close()
        return code


def main(job: Job, lock: FileLock) -> None:
    """The child: train the run on, then ask its model what is missing. Exits with the code of ``vlm train``."""
    os.setsid()  # a Ctrl-C is for the parent, which says what happens
    redirect(log_file(job.study, job.run))
    threading.Thread(target=_follow_parent, daemon=True).start()
    os.environ.update(job.environment)
    setup_logging()
    try:
        code = _do(job, lock)
    except UserError as error:
        say(f"error: {error}", sys.stderr)
        code = USER_FAULT
    if code:
        sys.exit(code)


def redirect(file: Path) -> None:
    """Let everything that this process prints go to the end of a file."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(handle, stream.fileno())
    os.close(handle)


def _follow_parent() -> None:
    """Stop like after a SIGTERM once the process that waits for this one is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _do(job: Job, lock: FileLock) -> int:
    from vlm.common.registry import load_plugin
    from vlm.common.trust import trusting

    with trusting(True):
        for module in job.plugins:
            load_plugin(module)
        done = read_done(job.study, job.run)
        if done is None or done.status == "pruned":
            code = _train_alone(job) if job.processes == 1 else _train_together(job, lock)
            if code:
                return code
        if job.asked:
            _limit_threads(job.threads)
            ask_all(job.study, job.run, job.asked, lambda text: say(text))
    return 0


def _limit_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _train_alone(job: Job) -> int:
    from vlm.config.api import load_config
    from vlm.runners.train.run import run_training

    _limit_threads(job.threads)
    cfg = load_config(config_file(job.study, job.run), ["run.resume=auto"], check="all", train=True, trust=True)
    result = run_training(cfg)
    if result.exit_code == 0:
        write_done(job.study, job.run, done_by(job, result.status))
    return result.exit_code


def _train_together(job: Job, lock: FileLock) -> int:
    """Train by torchrun, which gets the signals of this process."""
    file = str(config_file(job.study, job.run))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.processes}"]
    command = [sys.executable, *torchrun, "-m", "vlm.cli", "train", file, "--options", "run.resume=auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    process = subprocess.Popen(command, env=environment, pass_fds=[lock.handle])
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    code = process.wait()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if code == 0:
        write_done(job.study, job.run, done_by(job, "finished"))
    return code


def done_by(job: Job, status: str) -> Done:
    """What the run's last checkpoint says of it."""
    from vlm.checkpoint.header import header
    from vlm.checkpoint.provenance import read_provenance
    from vlm.checkpoint.run_files import WEIGHTS
    from vlm.checkpoint.run_folder import RunDir

    last = RunDir(run_folder(job.study, job.run)).last_good()
    record: dict[str, Any] = read_provenance(last)
    shapes = header(last / WEIGHTS)
    trained = sum(shapes[name].numel() for name in record.get("trained", ()) if name in shapes)
    frozen = sum(int(part.get("parameters", 0)) for part in (record.get("fingerprints") or {}).values())
    return Done(status, int(record["step"]), frozen + trained, trained)
