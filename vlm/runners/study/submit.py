"""Workers as jobs of a cluster, sent by submitit: Slurm where there is one, else processes of this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import ConfigError, UserError
from vlm.common.logging import say, setup_logging
from vlm.common.paths import make_folder
from vlm.common.text import counted
from vlm.runners.study.run import Hand, prepared, run_study
from vlm.runners.study.running.search import open_study

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

JOBS = "jobs"
"""Folder of what jobs print, in the study's folder."""
TIMES = 1000
"""How often a job that reaches its time limit, or is preempted, is queued again."""


@dataclass
class Worker:
    """What a job does: one worker of the study, which saves and is queued again at the job's time limit.

    Attributes:
        study, options: as given to the command.
        place: folder that relative paths start from.
    """

    study: str
    options: Sequence[str]
    place: str
    stopping: threading.Event | None = field(default=None, repr=False)

    def __call__(self) -> int:
        """Work until nothing waits; the exit code of ``vlm study run``. Failed cells are listed by its output."""
        os.chdir(self.place)
        setup_logging()
        self.stopping = threading.Event()
        study, space = open_study(self.study, self.options)
        return run_study(study, space=space, retry=False, stopping=self.stopping).exit_code

    def checkpoint(self) -> DelayedSubmission:
        """Called in the job before it is ended: let its run save, and say what the next job does."""
        from submitit.core.utils import DelayedSubmission

        if self.stopping is not None:
            self.stopping.set()
        for thread in threading.enumerate():
            if isinstance(thread, Hand):
                thread.join()
        return DelayedSubmission(Worker(self.study, self.options, self.place))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "stopping": None}


def submit(
    path: str | Path,
    options: Sequence[str] = (),
    *,
    retry: bool = True,
    cluster: str | None = None,
    show: Callable[[str], None] = say,
) -> list[str]:
    """Send as many workers as the study's ``cluster.jobs`` says.

    Args:
        path: of the study file.
        options: over it.
        retry: whether cells that failed before are begun again.
        cluster: name of an executor of submitit; None: Slurm where it is installed, else this machine.
        show: takes lines for the user.

    Returns:
        the ids of the jobs; empty if nothing is left to do.

    Raises:
        UserError: submitit is missing, or the jobs cannot be sent; ConfigError: an option that it does not have.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise UserError("--submit needs submitit", fix="pip install 'vlm[study]'") from error
    study, space = open_study(str(path), options)
    source, done = prepared(study, space, retry=retry)
    show(f"{study.folder}: {counted(source.total, 'cell')}, {done} done, {source.total - done} to do")
    count = min(study.file.cluster.jobs, source.total - done)
    if not count:
        return []
    folder = make_folder(study.folder.resolve() / JOBS)
    settings = study.file.cluster
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=TIMES)
        executor.update_parameters(
            **{"name": study.source.stem, "timeout_min": max(1, round(60 * settings.hours)), **settings.options}
        )
    except (NameError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"{study.source}: cluster: {error}", fix="see AutoExecutor of submitit") from error
    worker = Worker(str(study.source.resolve()), list(options), os.getcwd())
    try:
        jobs = [executor.submit(worker) for _ in range(count)]
    except (submitit.core.utils.FailedJobError, OSError) as error:
        raise UserError(f"the jobs cannot be sent ({error})", fix="check cluster.options of the study") from error
    names = [str(job.job_id) for job in jobs]
    show(f"sent {len(names)} worker{'s' if len(names) > 1 else ''} ({executor.cluster}): {', '.join(names)}")
    show(f"what they print: {study.folder / JOBS}/JOB_0_log.out and .err; how far the study is: vlm study show {path}")
    return names
