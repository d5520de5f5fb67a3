"""A folder that appears as a whole: written under a hidden name beside it, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm.common.errors import UserError
from vlm.common.paths import make_folder


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Within the block, a hidden folder beside ``target``; it becomes ``target`` at the end, or is removed.

    Raises:
        UserError: the disk is full, the folder cannot be written, or ``target`` came into being meanwhile.
    """
    make_folder(target.parent)
    work = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        work.mkdir()
        yield work
        if os.path.lexists(target):
            raise UserError(f"{target} exists", fix="give another name, or move it away")
        os.replace(work, target)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(work)):
            raise
        text = f"{target} cannot be written ({error.strerror or error}); nothing was left there"
        raise UserError(text, fix="make room, or give another name") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
