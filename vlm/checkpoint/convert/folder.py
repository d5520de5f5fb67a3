"""A new folder that is there as a whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm.common.errors import WeightsError
from vlm.common.paths import make_folder

UNFINISHED = "unfinished_merge"
"""A file in the hidden folder that is written into: what an interrupted command left may be deleted."""


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A hidden folder to write into, which gets the name ``target`` when the block ends without an error.

    Raises WeightsError: ``target`` holds files, or something else is where the hidden folder would be.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WeightsError(f"{target}: already holds files", fix="give a new folder")
    work = target.with_name(f".{target.name}.part")
    if work.exists() and not (work / UNFINISHED).is_file():
        raise WeightsError(f"{work}: in the way, and not left by a merge", fix="move it away, or give another target")
    shutil.rmtree(work, ignore_errors=True)
    make_folder(work)
    (work / UNFINISHED).touch()
    try:
        yield work
        if target.exists():
            target.rmdir()
        (work / UNFINISHED).unlink()
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
