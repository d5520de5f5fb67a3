"""What a run folder says of a step: its line of the log, and the checkpoint to start from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.checkpoint.provenance import read_provenance
from vlm.checkpoint.run_files import damage, is_checkpoint
from vlm.checkpoint.run_folder import CONFIG, RunDir, find_checkpoint
from vlm.common.errors import UserError, WeightsError
from vlm.config.tree import parse_file
from vlm.runners.train.trackers import LogRecord, of_steps, read_log

log = logging.getLogger(__name__)

MOST = 100_000
"""Processes or threads that a run can have had."""


@dataclass(frozen=True)
class RunFound:
    """A run folder and its log."""

    dir: RunDir
    records: list[LogRecord]  # of training steps, ascending
    spikes: dict[int, LogRecord]  # by step

    @property
    def last(self) -> int:
        """The last step of the log, or of the checkpoints; 0 without either."""
        return max([r["step"] for r in self.records[-1:]] + self.dir.steps()[-1:], default=0)

    def record(self, step: int) -> LogRecord | None:
        """The line of a step."""
        return next((r for r in self.records if r["step"] == step), None)


def find_run(folder: str | Path) -> RunFound:
    """Read the log of a run folder.

    Raises UserError: it is not a run folder.
    """
    path = Path(folder).expanduser()
    path = path.resolve().parents[1] if is_checkpoint(path.resolve()) else path
    run = RunDir(path)
    if not run.config_file.is_file():
        what = "it has no config.yaml" if path.is_dir() else "there is no such folder"
        raise UserError(f"{path} is not a run folder: {what}", fix="name the folder that run.output_dir named")
    records = of_steps(read_log(run.log_file))
    steps = {r["step"]: r for r in records if r["kind"] == "train" and _has_numbers(r)}
    spikes = {r["step"]: r for r in records if r["kind"] == "spike"}
    return RunFound(run, [steps[step] for step in sorted(steps)], spikes)


def _has_numbers(record: LogRecord) -> bool:
    return all(isinstance(record.get(key), int | float) for key in ("loss", "grad_norm"))


@dataclass(frozen=True)
class Start:
    """Where a replay starts."""

    checkpoint: Path | None  # None: the weights that the run began with
    step: int  # steps done there
    processes: int  # of the run at the step that is asked for
    config: Path  # file with the configuration of that step
    facts: dict[str, Any]  # provenance of the checkpoint that is nearest, or empty


def find_start(run: RunFound, step: int) -> Start:
    """The newest checkpoint before ``step`` that is not damaged, and what the next one tells of that part of the run.

    Raises:
        UserError: the run has no such step, or it began from a checkpoint that is gone.
    """
    _check_step(run, step)
    folders = {number: run.dir.folder(number) for number in run.dir.steps()}
    before = next((s for s in sorted(folders, reverse=True) if s < step and _is_whole(folders[s])), None)
    after = next((s for s in sorted(folders) if s >= step), None)
    told = [folders[s] for s in (after, before) if s is not None]
    facts = read_provenance(told[0]) if told else {}
    config = next((f / CONFIG for f in told[: after is not None] if (f / CONFIG).is_file()), run.dir.config_file)
    processes = hardware_of(facts, "processes", 1)
    if before is not None:
        return Start(folders[before], before, processes, config, facts)
    first = run.records[0]["step"] if run.records else 1
    if first == 1:
        return Start(None, 0, processes, config, facts)
    return Start(_began_from(config, first, run.dir), first - 1, processes, config, facts)


def hardware_of(facts: dict[str, Any], name: str, default: int) -> int:
    """A number of the machine that wrote a checkpoint. Raises WeightsError: it cannot be one."""
    hardware = facts.get("hardware")
    value = hardware.get(name, default) if isinstance(hardware, dict) else default
    if not isinstance(value, int) or not 1 <= value <= MOST:
        raise WeightsError(
            f"the provenance of a checkpoint says {name}: {value!r:.80}", fix="copy the run folder again"
        )
    return value


def _check_step(run: RunFound, step: int) -> None:
    """Raises UserError: the run did not get as far as ``step``, nor did it break off there."""
    if step > run.last + 1:
        raise UserError(
            f"{run.dir.path} has no step {step}: its last one is {run.last}",
            fix=f"--step 1 to {run.last}, or {run.last + 1} if the run broke off there" if run.last else "--step 1",
        )
    if step < 1:
        raise UserError(f"--step {step}: steps are counted from 1")


def _is_whole(folder: Path) -> bool:
    if fault := damage(folder):
        log.warning("%s is damaged (%s); an earlier one is used", folder, fault)
    return not fault


def _began_from(config: Path, first: int, run: RunDir) -> Path:
    """The checkpoint of another folder that a run was resumed from, as its configuration names it."""
    stated = parse_file(config).data.get("run") or {}
    named = [str(stated.get(key) or "") for key in ("resume", "resume_ckpt_path")]
    source = next((name for name in named if name not in ("", "never", "auto")), "")
    fix = "give the checkpoint with --options run.resume=DIR; run.keep_every keeps some of a run for good"
    what = f"{run.path} begins with step {first}, and no checkpoint before the step is left"
    if not source:
        raise UserError(what, fix=fix)
    try:
        folder = find_checkpoint(source)
    except WeightsError as error:
        raise UserError(f"{what}: {source}, which it was resumed from, cannot be used ({error})", fix=fix) from error
    if folder.name != f"step_{first - 1:08d}":
        raise UserError(f"{what}: it was resumed from {source}, where {folder.name} is now", fix=fix)
    return folder
