"""The folder of a run. Nothing in it is ever partly written, and nothing that a run did not write is ever deleted.

::

    output_dir/
      config.yaml           resolved configuration, which ``--cfg-path`` accepts
      log.jsonl  tensorboard/  report.html
      vlm_files.json        what of this folder the run wrote
      checkpoints/step_00000500/{model.safetensors, trainer.pt, provenance.json, config.yaml, manifest.json}
      last -> checkpoints/step_...      best -> checkpoints/step_...

A checkpoint is written into a hidden folder, flushed to disk, and renamed; the links are replaced by renaming as well.
``model.safetensors`` holds the trainable parameters only, ``manifest.json`` checksums: where the newest checkpoint is
damaged, the newest whole one is used, with a warning.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint.checkpoint_files import (
    CONFIG,
    TO_LOAD,
    TO_RESUME,
    check_plain,
    damage,
    flush,
    is_ours,
    remove_checkpoint,
    step_of,
    write_manifest,
    write_tensors,
)
from vlm.checkpoint.checkpoint_files import STATE as STATE
from vlm.checkpoint.checkpoint_files import WEIGHTS as WEIGHTS
from vlm.checkpoint.checkpoint_files import read_checkpoint as read_checkpoint
from vlm.checkpoint.provenance import FILE as PROVENANCE
from vlm.common.errors import UserError, WeightsError
from vlm.common.owned import OwnedFiles, check_output_folder, foreign_files, remove_if_empty, replace_text
from vlm.common.paths import make_folder
from vlm.common.processes.peers import is_alive

log = logging.getLogger(__name__)

LINKS = ("last", "best")
FOLDERS = ("checkpoints", "tensorboard")
EVENTS = "events.out.tfevents."
_HIDDEN = re.compile(r"\.(step_[0-9]{8,})\.(old\.)?([0-9]+)|\.gone_([0-9]+)")
"""Names of what :meth:`RunDir.save` and :meth:`RunDir.prune` work on."""
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


class RunDir:
    """Paths, atomic checkpoints and retention of one run folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config_file = self.path / CONFIG
        self.log_file = self.path / "log.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.report = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"
        self._texts = (CONFIG, self.log_file.name, self.report.name)
        self._owned = OwnedFiles(self.path)
        self._events_before: set[str] = set()
        self._warned: set[str] = set()

    def check(self, resume: str = "never", overwrite: bool = False) -> Path | None:
        """The checkpoint folder to resume from, or None to start from scratch; nothing is deleted yet.

        Args:
            resume: ``never``; ``auto`` (the last whole checkpoint here, if any); or the path of a run folder or
                checkpoint.
            overwrite: whether what another run left here may be deleted.

        Raises:
            UserError: no folder for a run; it holds another run, and neither ``resume`` nor ``overwrite`` is set; or
                files that no run wrote are in the way.
            WeightsError: there is no whole checkpoint at ``resume``.
        """
        check_output_folder(self.path)
        self._recover()
        self._adopt()
        self._refuse_foreign()
        if resume == "auto":
            return self.newest(TO_RESUME)
        if resume not in ("never", ""):
            return find_checkpoint(resume, TO_RESUME)
        if self.steps() and not overwrite:
            fix = "run.resume=auto continues it, run.overwrite=true deletes it; or set another run.output_dir"
            raise UserError(f"{self.path} already holds a run", fix=fix)
        return None

    def prepare(self, resume: str = "never", overwrite: bool = False) -> Path | None:
        """:meth:`check`, then create the folder; a run that starts from scratch deletes what an earlier one left."""
        source = self.check(resume, overwrite)
        make_folder(self.path)
        if source is None:
            self._clear()
        make_folder(self.checkpoints)
        self._events_before = self._events()
        self._owned.add((*self._texts, "checkpoints"))
        return source

    def note_files(self) -> None:
        """List the event files that appeared since :meth:`prepare` as the run's own."""
        self._owned.add(self._events() - self._events_before)

    def _events(self) -> set[str]:
        found = self.tensorboard.iterdir() if self.tensorboard.is_dir() else ()
        return {f"tensorboard/{p.name}" for p in found if p.name.startswith(EVENTS)}

    def _adopt(self) -> None:
        """Make the list of a run that was written before there was one; its checkpoints show that it is a run."""
        if self._owned.file.exists() or not any(map(is_ours, self._folders())):
            return
        there = {n for n in self._texts if (self.path / n).is_file()}
        self._owned.write({*there, "checkpoints", *self._events()})

    def _refuse_foreign(self) -> None:
        """Raises UserError if the run would have to replace what no run wrote."""
        files = self._owned.foreign(self._texts)
        files += [n for n in FOLDERS if os.path.lexists(self.path / n) and not (self.path / n).is_dir()]
        if "checkpoints" not in self._owned.names():
            files += [f"checkpoints/{p.name}" for p in self._folders() if not is_ours(p)]
        if files:
            raise foreign_files(self.path, files)

    def _clear(self) -> None:
        """Delete what the list names, and the checkpoints."""
        for link in LINKS:
            if self._linked(link) is not None or self._dangling(link):
                (self.path / link).unlink()
        for step in self.steps():
            self._remove(self.folder(step))
        self._owned.clear([*self._texts, *self._events()])
        for name in FOLDERS:
            remove_if_empty(self.path / name)

    def _recover(self) -> None:
        """Remove what a killed process left; restore a checkpoint that was being replaced."""
        for stale in list(self.checkpoints.iterdir()) if self.checkpoints.is_dir() else ():
            found = _HIDDEN.fullmatch(stale.name)
            if found is None or (found[3] and int(found[3]) != os.getpid() and is_alive(int(found[3]))):
                continue
            if found[2] and not (self.checkpoints / found[1]).exists():
                os.replace(stale, self.checkpoints / found[1])
            else:
                remove_checkpoint(stale)

    def _folders(self) -> list[Path]:
        """Folders with the name of a checkpoint; raises UserError where they cannot be listed."""
        try:
            names = os.listdir(self.checkpoints)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{self.checkpoints} cannot be read ({error.strerror})") from error
        found = (self.checkpoints / n for n in sorted(names) if step_of(n) is not None)
        return [p for p in found if p.is_dir()]

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        return sorted(int(p.name[5:]) for p in self._folders() if is_ours(p))

    def folder(self, step: int) -> Path:
        """Folder of the checkpoint after ``step`` optimiser steps."""
        return self.checkpoints / f"step_{step:08d}"

    def last(self) -> Path | None:
        """The newest checkpoint (by the link, else by number), or None; it may be damaged."""
        return next(self._newest_first(), None)

    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss, or None."""
        return self._linked("best")

    def newest(self, needed: Sequence[str] = TO_RESUME) -> Path | None:
        """The newest checkpoint whose ``needed`` files are whole, or None without any; warns of damaged ones.

        Raises WeightsError: all of them are damaged.
        """
        damaged = []
        for folder in self._newest_first():
            problem = damage(folder, needed)
            if not problem:
                if damaged:
                    log.warning("the newest whole checkpoint is used instead: %s", folder)
                return folder
            damaged.append(f"{folder.name}: {problem}")
            log.warning("checkpoint %s is damaged: %s", folder, problem)
        if damaged:
            raise WeightsError(
                f"{self.path}: no checkpoint is whole ({'; '.join(damaged[:4])})",
                fix="restore one from a copy, or start over with another run.output_dir",
            )
        return None

    def _newest_first(self) -> Iterator[Path]:
        """The checkpoint that ``last`` names, those before it, then any later ones (of an abandoned continuation).

        One that a killed process was replacing by another of the same step counts too.
        """
        linked, steps = self._linked("last"), self.steps()
        newest = int(linked.name[5:]) if linked is not None else max(steps, default=0)
        yield from (
            self.folder(s) for s in [*(s for s in steps[::-1] if s <= newest), *(s for s in steps if s > newest)]
        )
        hidden = sorted(self.checkpoints.iterdir(), reverse=True) if self.checkpoints.is_dir() else []
        named = [(p, _HIDDEN.fullmatch(p.name)) for p in hidden]
        yield from (p for p, m in named if m and m[2] and not (self.checkpoints / m[1]).exists() and is_ours(p))

    def _linked(self, name: str) -> Path | None:
        """The checkpoint that a link of ours names, if it is there."""
        target = self._target(name)
        return target if target is not None and is_ours(target) else None

    def _target(self, name: str) -> Path | None:
        """Where a link to one of the checkpoints here leads; None for anything else of that name."""
        link = self.path / name
        target = Path(os.readlink(link)) if link.is_symlink() else Path()
        return (
            self.checkpoints / target.name if target.parts[:-1] == ("checkpoints",) and step_of(target.name) else None
        )

    def _dangling(self, name: str) -> bool:
        target = self._target(name)
        return target is not None and not target.exists()

    def write_config(self, text: str) -> None:
        """Write the run's ``config.yaml`` (atomically)."""
        replace_text(self.config_file, text)

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
            UserError: it cannot be written (a full disk, a folder that was deleted); names the last whole checkpoint.
        """
        check_plain(state)
        target = self.folder(step)
        work, old = (self.checkpoints / f".{target.name}.{kind}{os.getpid()}" for kind in ("", "old."))
        remove_checkpoint(work)
        with self.faults(f"the checkpoint of step {step}"):
            try:
                work.mkdir()
                write_tensors(work, step, tensors, state)
                replace_text(work / PROVENANCE, json.dumps(provenance, indent=1, default=str))
                replace_text(work / CONFIG, config_text)
                write_manifest(work, step)
                for file in work.iterdir():
                    flush(file)
                flush(work)
                if target.exists():
                    os.replace(target, old)
                os.replace(work, target)
            finally:
                with suppress(OSError):
                    remove_checkpoint(work)  # there only after a fault; a full disk needs the room
            flush(self.checkpoints)
            self._link("last", target)
            if best:
                self._link("best", target)
            self._remove(old)
        log.info("saved %s%s", target, " (best so far)" if best else "")
        return target

    def _link(self, name: str, target: Path) -> None:
        link = self.path / name
        if os.path.lexists(link) and self._target(name) is None:
            self._warn(f"{link} is not a link to a checkpoint and is left as it is; the newest is {target.name}")
            return
        fresh = self.path / f".{name}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(Path("checkpoints") / target.name, target_is_directory=True)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            self._warn(f"{self.path}: no links on this file system ({error.strerror}); checkpoints go by their number")
            return
        os.replace(fresh, link)
        flush(self.path)

    def _warn(self, text: str) -> None:
        """Warn once."""
        if text.split(";")[0] not in self._warned:
            self._warned.add(text.split(";")[0])
            log.warning("%s", text)

    def prune(self, keep_last: int, keep_every: int = 0) -> list[int]:
        """Delete all but the ``keep_last`` newest checkpoints (0 or less: none); returns the deleted steps.

        ``last``, ``best`` and multiples of ``keep_every`` (0: none) always stay.
        """
        if keep_last <= 0:
            return []
        steps = self.steps()
        keep = set(steps[-keep_last:]) | {s for s in steps if keep_every > 0 and s % keep_every == 0}
        keep |= {int(p.name[5:]) for p in (self._linked("last"), self.best()) if p is not None}
        gone = [s for s in steps if s not in keep]
        with self.faults("after a checkpoint was saved"):
            for step in gone:
                hidden = self.checkpoints / f".gone_{step}"
                os.replace(self.folder(step), hidden)  # an interrupted deletion leaves no partial checkpoint
                if not remove_checkpoint(hidden):
                    os.replace(hidden, self.folder(step))  # holds something else, which stays
        return gone

    def _remove(self, folder: Path) -> None:
        if os.path.lexists(folder) and not remove_checkpoint(folder):
            kept = folder.with_name(folder.name.lstrip("."))
            os.replace(folder, kept)
            log.warning("%s holds files that are not of a checkpoint; they stay there", kept)

    @contextmanager
    def faults(self, what: str = "") -> Iterator[None]:
        """Turn faults of the disk, and of any file of this run, into a UserError that names the last checkpoint."""
        try:
            yield
        except OSError as error:
            named = [str(n) for n in (error.filename, error.filename2) if isinstance(n, str | os.PathLike)]
            inside = any(Path(n).absolute().is_relative_to(self.path.absolute()) for n in named)
            if error.errno not in DISK_FAULTS and not inside:
                raise
            raise self._fault(what, error.strerror or str(error)) from error

    def _fault(self, what: str, reason: str) -> UserError:
        """The error about a run folder that cannot be written any more."""
        if not self.path.is_dir():
            reason = "the folder was deleted during the run"
        whole = next((p for p in self._newest_first() if not damage(p, TO_RESUME)), None)
        kept = f"the last whole checkpoint is {whole}" if whole else "there is no whole checkpoint"
        text = f"{self.path} cannot be written{f' ({what})' if what else ''}: {reason}; {kept}"
        go_on = "run.resume=auto continues from it" if whole else "start again"
        return UserError(text, fix=f"make room or let the run write there, then {go_on}")


def find_checkpoint(path: str | Path, needed: Sequence[str] = TO_LOAD) -> Path:
    """The checkpoint that ``path`` is, is in or, as a run (or its ``last``), holds, with its ``needed`` files whole.

    Raises WeightsError: there is none.
    """
    path = Path(path).expanduser()
    path = path.parent if path.is_file() else path
    run = RunDir(path.parent if path.name == "last" and path.is_symlink() else path)
    chosen = (path / WEIGHTS).is_file() or is_ours(path)
    if chosen and not (path.is_symlink() and path.name == "last"):
        _refuse_damage(path.resolve(), [n for n in needed if n != CONFIG])
        return path.resolve()
    result = (run.newest(needed) if run.path.is_dir() else None) or (path if chosen else None)
    if result is None:
        fix = "give a run folder, its 'last' or 'best' link, or a step_... folder"
        raise WeightsError(f"{path}: no checkpoint there", fix=fix)
    return result.resolve()


def _refuse_damage(folder: Path, needed: Sequence[str]) -> None:
    """Raises WeightsError if a checkpoint that was named is damaged; names a whole one of the same run."""
    problem = damage(folder, needed)
    if not problem or not is_ours(folder):
        return  # reading the file says more
    run = RunDir(folder.parent.parent)
    whole = next((p for p in run._newest_first() if not damage(p, needed)), None)
    fix = f"the newest whole one of this run is {whole}" if whole else "restore it from a copy"
    raise WeightsError(f"{folder}: damaged ({problem})", fix=f"{fix}; if you changed it yourself, delete manifest.json")
