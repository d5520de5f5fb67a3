"""A file of answers, one JSON object per record in order; it can be gone on with until every record is usable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.common import dist
from vlm.common.errors import UserError
from vlm.common.owned import replace_text
from vlm.datasets.formats.table.arrow import to_parquet
from vlm.tasks.answers import AnswerParts


class AnswerFile:
    """The result of ``vlm generate``: ``path``, and the ``parts`` next to it while records are left."""

    def __init__(self, path: str | Path, fingerprint: str, *, overwrite: bool = False) -> None:
        """Find what an earlier run left; call it on all processes.

        Args:
            path: the file to write at the end.
            fingerprint: of everything besides the records that answers depend on.
            overwrite: start again, whatever is there.

        Raises:
            UserError: a finished file exists, or parts of another run do.
        """
        self.path = Path(path)
        there = self.path.exists() and not self.path.with_name(f"{self.path.name}.part-0").exists()
        if dist.broadcast_object(there and not overwrite):
            raise UserError(f"{self.path} exists", fix="name another file, or add --overwrite")
        self.parts = AnswerParts(self.path, fingerprint, overwrite=overwrite)

    def write(self, rows: Sequence[Mapping[str, Any]], *, finished: bool) -> None:
        """Write one JSON object per record, in order; call it on all processes.

        See :func:`write_rows`.

        Args:
            rows: of all records.
            finished: whether all have an answer; otherwise the parts stay, so that the same command goes on.
        """
        if dist.is_main():
            write_rows(self.path, rows)
            if finished:
                self.parts.remove()
        dist.barrier()


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write objects so that the file is there as a whole or as it was before.

    A file ``*.json`` is an array, ``*.parquet`` a table with a column ``error``, any other has a line per object.
    """
    if path.suffix == ".json":
        replace_text(path, json.dumps(rows, ensure_ascii=False, indent=2))
    elif path.suffix == ".parquet":
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            to_parquet([{**row, "error": row.get("error", "")} for row in rows], fresh)
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    else:
        replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
