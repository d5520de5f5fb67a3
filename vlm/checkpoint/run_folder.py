"""The folder of a run. Nothing in it is ever partly written.

::

    output_dir/
      config.yaml           resolved configuration, which ``--cfg-path`` accepts
      log.jsonl  tensorboard/  report.html
      checkpoints/step_00000500/{model.safetensors, trainer.pt, provenance.json, config.yaml}
      last -> checkpoints/step_...      best -> checkpoints/step_...

A checkpoint is written into a hidden folder, flushed to disk, and renamed; the links are replaced
by renaming as well. ``model.safetensors`` holds the trainable parameters, and frozen ones that started at random.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint.provenance import FILE as PROVENANCE
from vlm.checkpoint.safe import read_file
from vlm.common.errors import UserError, WeightsError
from vlm.common.paths import make_folder
from vlm.common.trust import remember

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
STATE = "trainer.pt"
CONFIG = "config.yaml"


class RunDir:
    """Paths, atomic checkpoints and retention of one run folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config_file = self.path / CONFIG
        self.log_file = self.path / "log.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.report = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"

    def check(self, resume: str = "never", overwrite: bool = False) -> Path | None:
        """The checkpoint folder to resume from, or None to start from scratch; nothing is deleted yet.

        Args:
            resume: ``never``; ``auto`` (the last checkpoint here, if any); or the path of a run folder or checkpoint.
            overwrite: whether what another run left here may be deleted.

        Raises:
            UserError: the folder holds another run, and neither ``resume`` nor ``overwrite`` is set.
            WeightsError: there is no checkpoint at ``resume``.
        """
        if self.checkpoints.is_dir():
            self._recover()
        if resume == "auto":
            return self.last()
        if resume not in ("never", ""):
            return find_checkpoint(resume)
        if self.steps() and not overwrite:
            fix = "run.resume=auto continues it, run.overwrite=true deletes it; or set another run.output_dir"
            raise UserError(f"{self.path} already holds a run", fix=fix)
        return None

    def prepare(self, resume: str = "never", overwrite: bool = False) -> Path | None:
        """:meth:`check`, then create the folder; a run that starts from scratch deletes what an earlier one left."""
        source = self.check(resume, overwrite)
        if source is None:
            for path in (self.checkpoints, self.tensorboard):
                shutil.rmtree(path, ignore_errors=True)
            for path in (self.config_file, self.log_file, self.report, self.path / "last", self.path / "best"):
                path.unlink(missing_ok=True)
        make_folder(self.checkpoints)
        return source

    def _recover(self) -> None:
        """Remove what a killed process left; restore a checkpoint that was being replaced."""
        for stale in self.checkpoints.glob(".*"):
            name = stale.name.split(".")[1]
            if ".old." in stale.name and not (self.checkpoints / name).exists():
                os.replace(stale, self.checkpoints / name)
            else:
                shutil.rmtree(stale)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(int(p.name[5:]) for p in self.checkpoints.glob("step_*") if p.name[5:].isdigit())

    def folder(self, step: int) -> Path:
        """Folder of the checkpoint after ``step`` optimiser steps."""
        return self.checkpoints / f"step_{step:08d}"

    def last(self) -> Path | None:
        """The newest complete checkpoint (by the link, else by number), or None."""
        return self._linked("last") or (self.folder(self.steps()[-1]) if self.steps() else None)

    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss, or None."""
        return self._linked("best")

    def _linked(self, name: str) -> Path | None:
        link = self.path / name
        return self.checkpoints / os.path.basename(os.readlink(link)) if link.is_symlink() and link.exists() else None

    def write_config(self, text: str) -> None:
        """Write the run's ``config.yaml`` (atomically), and note that this user trained it."""
        _write_text(self.config_file, text)
        remember(self.path, text)

    def save(
        self,
        step: int,
        tensors: dict[str, torch.Tensor],
        state: dict[str, Any],
        provenance: dict[str, Any],
        config_text: str,
        *,
        best: bool = False,
    ) -> Path:
        """Write a checkpoint and point ``last`` (and ``best``) at it; a crash leaves what was there as it was.

        Args:
            step: optimiser steps done.
            tensors: trainable parameters by name.
            state: train state (plain values and tensors).
            provenance: JSON-ready provenance.
            config_text: the resolved configuration as YAML.
            best: whether this is the best one so far.

        Raises:
            TypeError: ``state`` holds something that could not be read back safely.
        """
        from safetensors.torch import save_file

        check_plain(state)
        target = self.folder(step)
        work, old = (self.checkpoints / f".{target.name}.{kind}{os.getpid()}" for kind in ("", "old."))
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        save_file(tensors, work / WEIGHTS, metadata={"format": "pt", "step": str(step)})
        torch.save(state, work / STATE)
        _write_text(work / PROVENANCE, json.dumps(provenance, indent=1, default=str))
        _write_text(work / CONFIG, config_text)
        for file in work.iterdir():
            _flush(file)
        _flush(work)
        if target.exists():
            os.replace(target, old)
        os.replace(work, target)
        _flush(self.checkpoints)
        self._link("last", target)
        if best:
            self._link("best", target)
        shutil.rmtree(old, ignore_errors=True)
        log.info("saved %s%s", target, " (best so far)" if best else "")
        return target

    def _link(self, name: str, target: Path) -> None:
        fresh = self.path / f".{name}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path("checkpoints") / target.name, target_is_directory=True)
        os.replace(fresh, self.path / name)
        _flush(self.path)

    def prune(self, keep_last: int, keep_every: int = 0) -> list[int]:
        """Delete all but the ``keep_last`` newest checkpoints (0 or less: none); returns the deleted steps.

        ``last``, ``best`` and multiples of ``keep_every`` (0: none) always stay.
        """
        if keep_last <= 0:
            return []
        steps = self.steps()
        keep = set(steps[-keep_last:]) | {s for s in steps if keep_every > 0 and s % keep_every == 0}
        keep |= {int(p.name[5:]) for p in (self.last(), self.best()) if p is not None}
        gone = [s for s in steps if s not in keep]
        for step in gone:
            hidden = self.checkpoints / f".gone_{step}"
            os.replace(self.folder(step), hidden)  # an interrupted deletion leaves no partial checkpoint
            shutil.rmtree(hidden)
        return gone


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that ``path`` is, links to, is in or, as a run, holds. Raises WeightsError if there is none."""
    path = Path(path).expanduser()
    path = path.parent if path.is_file() else path
    if (path / WEIGHTS).is_file():
        return path.resolve()
    result = RunDir(path).last() if path.is_dir() else None
    if result is None:
        fix = "give a run folder, its 'last' or 'best' link, or a step_... folder"
        raise WeightsError(f"{path}: no checkpoint there", fix=fix)
    return result.resolve()


def read_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Trainable tensors and train state of a checkpoint. Raises WeightsError if a file is missing or damaged."""
    return read_file(folder / WEIGHTS), read_state(folder / STATE)


def check_plain(value: Any, where: str = "state") -> None:
    """Raises TypeError for the first object that ``torch.load(weights_only=True)`` would not read back."""
    inside: list[tuple[Any, str]] = []
    if isinstance(value, list | tuple):
        inside = [(item, f"{where}[{i}]") for i, item in enumerate(value)]
    elif isinstance(value, dict):
        inside = [pair for k, v in value.items() for pair in ((k, f"key of {where}"), (v, f"{where}.{k}"))]
    elif value is not None and not isinstance(value, bool | int | float | str | torch.Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}; train state holds only tensors and plain python values")
    for item, place in inside:
        check_plain(item, place)


def read_state(path: Path) -> dict[str, Any]:
    """Read ``trainer.pt``. Raises WeightsError if it is missing, unreadable or contains code."""
    state = read_file(path, mapped=False)
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds {type(state).__name__}, expected the state of a run")
    return state


def _write_text(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    _flush(fresh)
    os.replace(fresh, path)


def _flush(path: Path) -> None:
    """Ask the system to put a file's or folder's content on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
