"""The folder of a run. Nothing in it is ever partly written.

::

    output_dir/
      config.yaml           resolved configuration, which ``--cfg-path`` accepts
      run_files.json        the names that belong to the run; nothing else is ever deleted
      log.jsonl  tensorboard/  report.html
      checkpoints/step_00000500/{model.safetensors, trainer.pt, provenance.json, config.yaml, checksums.json}
                                of a sharded run also optimizer.00000.safetensors, one of each process
      last -> checkpoints/step_...      best -> checkpoints/step_...

A checkpoint is written into a hidden folder, flushed to disk, and renamed; the links are replaced
by renaming as well. ``model.safetensors`` holds the trainable parameters, and frozen ones that started at random.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint.provenance import FILE as PROVENANCE
from vlm.checkpoint.provenance import as_metadata
from vlm.checkpoint.run_files import (
    CHECKSUMS,
    STATE,
    WEIGHTS,
    damage,
    flush,
    foreign_names,
    is_checkpoint,
    refuse_place,
    remove_checkpoint,
    remove_run,
    write_checksums,
    write_manifest,
)
from vlm.checkpoint.safe import read_file
from vlm.common.errors import UserError, WeightsError
from vlm.common.owned import replace_text
from vlm.common.paths import make_folder
from vlm.common.processes.peers import is_alive
from vlm.common.trust import remember

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
Join = Callable[[Path, dict[str, str]], dict[str, Any]]
_WORK = re.compile(r"\.(step_[0-9]+)\.(old\.)?([0-9]+)")


class RunDir:
    """Paths, atomic checkpoints and retention of one run folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config_file = self.path / CONFIG
        self.log_file = self.path / "log.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.report = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"
        self._prepared = False

    def check(self, resume: str = "never", overwrite: bool = False) -> Path | None:
        """The checkpoint folder to resume from, or None to start from scratch; nothing is deleted yet.

        Args:
            resume: ``never``; ``auto`` (the last checkpoint here, if any); or the path of a run folder or checkpoint.
            overwrite: whether what another run left here may be deleted.

        Raises:
            UserError: the folder holds another run, and neither ``resume`` nor ``overwrite`` is set; or it holds files
                of others under the names that a run uses; or a run must not write there.
            WeightsError: there is no usable checkpoint at ``resume``.
        """
        refuse_place(self.path)
        if self.checkpoints.is_dir():
            self._recover()
        if resume == "auto" and self.steps():
            return self.last_good()
        foreign, source = foreign_names(self.path), None
        if resume not in ("auto", "never", ""):
            source = find_checkpoint(resume)
            if source.is_relative_to(self.path.resolve()):
                return source
        elif self.steps() and (foreign or not overwrite):
            again = "delete the folder yourself" if foreign else "run.overwrite=true deletes it"
            fix = f"run.resume=auto continues it, {again}; or set another run.output_dir"
            raise UserError(f"{self.path} already holds a run", fix=fix)
        if foreign and not self.steps():
            raise UserError(
                f"{self.path} holds {', '.join(foreign)}, which no run of vlm wrote; nothing was changed",
                fix="set another run.output_dir, or move them away",
            )
        return source

    def prepare(self, resume: str = "never", overwrite: bool = False) -> Path | None:
        """:meth:`check`, then create the folder; a run that starts from scratch deletes what an earlier one left."""
        source = self.check(resume, overwrite)
        if source is None:
            remove_run(self.path)
        make_folder(self.checkpoints)
        self._prepared = True
        if not foreign_names(self.path) or source is None:
            with self.written("the run folder"):
                write_manifest(self.path)
        return source

    def _recover(self) -> None:
        """Remove what a killed process left; restore a checkpoint that was being replaced."""
        for stale in sorted(self.checkpoints.glob(".*")):
            named = _WORK.fullmatch(stale.name)
            if named and int(named[3]) != os.getpid() and is_alive(int(named[3])):
                continue  # another run writes it just now
            if named and named[2] and not (self.checkpoints / named[1]).exists():
                os.replace(stale, self.checkpoints / named[1])
            elif named or re.fullmatch(r"\.gone_\d+", stale.name):
                remove_checkpoint(stale)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        found = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return sorted(int(p.name[5:]) for p in found if is_checkpoint(p))

    def folder(self, step: int) -> Path:
        """Folder of the checkpoint after ``step`` optimiser steps."""
        return self.checkpoints / f"step_{step:08d}"

    def last(self) -> Path | None:
        """The newest complete checkpoint (by the link, else by number), or None."""
        if self.steps():
            return self._linked("last") or self.folder(self.steps()[-1])
        hidden = sorted(self.checkpoints.glob(".step_*.old.*"))  # killed while it was being replaced
        return next((p for p in hidden if _WORK.fullmatch(p.name) and (p / WEIGHTS).is_file()), None)

    def last_good(self) -> Path:
        """The newest checkpoint whose files are as they were written; a damaged newer one is named in a warning.

        Raises WeightsError: all are damaged, or there is none.
        """
        last, steps = self.last(), self.steps()[::-1]
        newest = [last, *(self.folder(s) for s in steps)]
        if last is not None and last == self._linked("last"):  # later ones are of an abandoned continuation
            newest.sort(key=lambda p: p is not None and p.name > last.name)
        faults: dict[Path, str] = {}
        for folder in dict.fromkeys(f for f in newest if f is not None):
            fault = damage(folder)
            if not fault:
                for path, text in faults.items():
                    log.warning("%s is damaged (%s); going back to %s", path, text, folder.name)
                return folder
            faults[folder] = fault
        if not faults:
            raise WeightsError(f"{self.path}: no checkpoint there", fix=_NAMES)
        told = "".join(f"\n  - {path.name}: {text}" for path, text in faults.items())
        raise WeightsError(f"{self.path}: every checkpoint is damaged:{told}", fix="copy the run folder again")

    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss, or None."""
        return self._linked("best")

    def _linked(self, name: str) -> Path | None:
        link = self.path / name
        target = self.checkpoints / os.path.basename(os.readlink(link)) if self._is_own_link(link) else None
        return target if target is not None and is_checkpoint(target) else None

    @staticmethod
    def _is_own_link(link: Path) -> bool:
        return link.is_symlink() and Path(os.readlink(link)).parent == Path("checkpoints")

    @contextmanager
    def written(self, what: str) -> Iterator[None]:
        """Turns a failed write into one message that names the last good checkpoint."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and not re.search("inline_container|PytorchStreamWriter", str(error)):
                raise  # only that of torch's file writer, which hides the system's reason
            good = None
            with suppress(OSError, WeightsError):
                good = self.last_good()
            kept = f"the last good checkpoint is {good}" if good else "there is no earlier checkpoint"
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise UserError(
                f"{what} cannot be written to {self.path} ({reason}); {kept}",
                fix="free space or mend the folder, then continue with run.resume=auto",
            ) from error

    def write_config(self, text: str) -> None:
        """Write the run's ``config.yaml`` (atomically), and note that this user trained it."""
        with self.written("config.yaml"):
            replace_text(self.config_file, text)
        remember(self.path, text)

    def begin(self, step: int) -> Path:
        """The hidden folder into which all processes of a sharded run write their parts; rank 0 makes it.

        :meth:`save` with the same step completes it.
        """
        work = self._hidden(step)
        with self.written(f"the checkpoint of step {step}"):
            if work.exists():
                remove_checkpoint(work)
            work.mkdir(parents=not self._prepared)  # if the parents are gone, somebody deleted the folder under the run
        return work

    def _hidden(self, step: int, kind: str = "") -> Path:
        return self.checkpoints / f".{self.folder(step).name}.{kind}{os.getpid()}"

    def save(
        self,
        step: int,
        tensors: dict[str, torch.Tensor] | Join,
        state: dict[str, Any],
        provenance: dict[str, Any],
        config_text: str,
        *,
        best: bool = False,
    ) -> Path:
        """Write a checkpoint and point ``last`` (and ``best``) at it; a crash leaves what was there as it was.

        Args:
            step: optimiser steps done.
            tensors: trainable parameters by name; or, after :meth:`begin`, what writes them into the hidden folder
                with the given metadata, and returns size and CRC-32 of files that other processes wrote there.
            state: train state (plain values and tensors).
            provenance: JSON-ready provenance.
            config_text: the resolved configuration as YAML.
            best: whether this is the best one so far.

        Raises:
            TypeError: ``state`` holds something that could not be read back safely.
        """
        check_plain(state)
        with self.written(f"the checkpoint of step {step}"):
            texts = {PROVENANCE: json.dumps(provenance, indent=1, default=str), CONFIG: config_text}
            target = self._save(step, tensors, state, texts, as_metadata(provenance))
            self._link("last", target)
            if best:
                self._link("best", target)
        log.info("saved %s%s", target, " (best so far)" if best else "")
        return target

    def _save(
        self,
        step: int,
        tensors: dict[str, torch.Tensor] | Join,
        state: dict[str, Any],
        texts: dict[str, str],
        metadata: dict[str, str],
    ) -> Path:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        target, old = self.folder(step), self._hidden(step, "old.")
        work = self.begin(step) if isinstance(tensors, dict) else self._hidden(step)
        metadata, known = {"format": "pt", "step": str(step), **metadata}, {}
        try:
            if isinstance(tensors, dict):
                save_file(tensors, work / WEIGHTS, metadata=metadata)
            else:
                known = tensors(work / WEIGHTS, metadata)
            torch.save(state, work / STATE)
            for name, text in texts.items():
                replace_text(work / name, text)
            write_checksums(work, known)
            for file in work.iterdir():
                if file.name not in known:
                    flush(file)
            flush(work)
            if target.exists():
                os.replace(target, old)
            os.replace(work, target)
        except (OSError, RuntimeError, SafetensorError):
            with suppress(OSError):
                remove_checkpoint(work)  # a full disk needs the room
            raise
        flush(self.checkpoints)
        if old.exists() and not remove_checkpoint(old):
            for file in old.iterdir():  # of others
                os.replace(file, target / file.name)
            old.rmdir()
        return target

    def _link(self, name: str, target: Path) -> None:
        if os.path.lexists(self.path / name) and not self._is_own_link(self.path / name):
            log.warning("%s is not a link of this run and stays as it is", self.path / name)
            return
        fresh = self.path / f".{name}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path("checkpoints") / target.name, target_is_directory=True)
        os.replace(fresh, self.path / name)
        flush(self.path)

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
            if not remove_checkpoint(hidden):
                os.replace(hidden, self.folder(step))  # files of others are in it
        return gone


_NAMES = "give a run folder, its 'last' or 'best' link, or a step_... folder"


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that ``path`` is, links to, is in or, as a run, holds; of a run the newest that is not damaged.

    Raises WeightsError: there is none, or the one that is named is damaged.
    """
    path = Path(path).expanduser()
    path = path.parent if path.is_file() else path
    run = path.parent if path.name == "last" and (path.parent / "checkpoints").is_dir() else path
    if run == path and (path / WEIGHTS).is_file():
        folder = path.resolve()
        if fault := damage(folder):
            others = [p.name for p in folder.parent.glob("step_*") if p != folder and is_checkpoint(p)]
            fix = f"use another checkpoint ({', '.join(others)})" if others else "copy it again"
            fix += f"; if you changed it yourself, delete its {CHECKSUMS}" if (folder / CHECKSUMS).is_file() else ""
            raise WeightsError(f"{folder}: damaged ({fault})", fix=fix)
        return folder
    if not run.is_dir():
        raise WeightsError(f"{path}: no checkpoint there", fix=_NAMES)
    return RunDir(run).last_good().resolve()


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
