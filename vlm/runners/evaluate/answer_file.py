"""A file of answers that several processes write together: in order, complete or not at all, resumable.

Each process appends to ``OUTPUT.part-RANK`` as it goes; at the end one process writes ``OUTPUT``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vlm.common import dist
from vlm.common.errors import DataError, UserError
from vlm.common.paths import make_folder

log = logging.getLogger(__name__)


class AnswerFile:
    """Answers by record number.

    Attributes: ``done``, number -> answer, of this run and of the interrupted one before it; ``path``.
    """

    def __init__(self, path: str | Path, fingerprint: str, *, overwrite: bool = False) -> None:
        """Find what an interrupted run left; call it on all processes.

        Args:
            path: the file to write at the end.
            fingerprint: of everything the answers depend on.
            overwrite: start again, whatever is there.

        Raises:
            UserError: the file exists, or parts of another run do.
        """
        self.path, self.fingerprint = Path(path), fingerprint
        self.done: dict[int, str] = {}
        problem = dist.broadcast_object(self._prepare(overwrite) if dist.is_main() else None)
        if problem:
            raise UserError(*problem[:1], fix=problem[1])
        for part in self.parts():
            self.done |= dict(_read(part)[1])
        if self.done:
            log.info("%s: %d answers taken from an interrupted run", self.path, len(self.done))
        dist.barrier()
        own = self._own()
        kept = _read(own)[1] if own.exists() else ()  # without the last line if it was cut off
        own.write_text("".join(map(_line, [{"fingerprint": self.fingerprint}, *kept])), encoding="utf-8")

    def parts(self) -> list[Path]:
        """The unfinished files of all processes."""
        return sorted(self.path.parent.glob(f"{self.path.name}.part-*"))

    def add(self, answers: Iterable[tuple[int, str]]) -> None:
        """Keep answers of this process (record number, text); they are on disk when this returns."""
        answers = list(answers)
        with self._own().open("a", encoding="utf-8") as file:
            file.writelines(map(_line, answers))
        self.done |= dict(answers)

    def finish(self, line: Callable[[int, str], dict[str, Any]], count: int) -> None:
        """Write the file, one JSON object per record in order, and remove the parts; call it on all processes.

        A file ``*.json`` is an array, any other has a line per record.

        Args:
            line: makes a record's object from its number and its answer.
            count: number of records; all must be answered.
        """
        everyone: dict[int, str] = {}
        for part in dist.gather_objects(self.done):
            everyone |= part
        if dist.is_main():
            new = self.path.with_name(self.path.name + ".new")
            rows = [line(k, everyone[k]) for k in range(count)]
            if self.path.suffix == ".json":
                text = json.dumps(rows, ensure_ascii=False, indent=2)
            else:
                text = "".join(map(_line, rows))
            new.write_text(text, encoding="utf-8")
            os.replace(new, self.path)
            for old in self.parts():
                old.unlink()
        dist.barrier()

    def _own(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part-{dist.rank()}")

    def _prepare(self, overwrite: bool) -> tuple[str, str] | None:
        """Make the folder; a message and a fix when the file may not be written."""
        make_folder(self.path.parent)
        if overwrite:
            for old in self.parts():
                old.unlink()
        elif self.path.exists():
            return f"{self.path} exists", "name another file, or add --overwrite"
        for part in self.parts():
            if _read(part)[0] not in (self.fingerprint, ""):
                return (
                    f"{part} was written with other records, another model or other options",
                    "name another file, or add --overwrite to start again",
                )
        return None


def _line(entry: Any) -> str:
    return json.dumps(entry) + "\n"


def _read(part: Path) -> tuple[str, Sequence[tuple[int, str]]]:
    """Fingerprint (empty where nothing was written yet) and answers; an unfinished last line is left out.

    Raises DataError: the file is not a partial answer file.
    """
    whole = part.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        head = json.loads(whole[0])["fingerprint"] if whole else ""
        return head, [(int(k), str(text)) for k, text in map(json.loads, whole[1:])]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{part} is not a partial answer file written by `vlm generate` ({error})", fix="delete it and start again"
        ) from None
