"""A file of answers, one JSON object per record in order; it can be gone on with until every record is usable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.common import dist
from vlm.common.errors import UserError
from vlm.common.owned import replace_text
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

        A file ``*.json`` is an array, any other has a line per record.

        Args:
            rows: of all records.
            finished: whether all have an answer; otherwise the parts stay, so that the same command goes on.
        """
        if dist.is_main():
            if self.path.suffix == ".json":
                text = json.dumps(rows, ensure_ascii=False, indent=2)
            else:
                text = "".join(json.dumps(row) + "\n" for row in rows)
            replace_text(self.path, text)
            if finished:
                self.parts.remove()
        dist.barrier()
