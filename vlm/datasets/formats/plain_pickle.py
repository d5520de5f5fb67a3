"""Pickled annotation files read without running their code: lists, dictionaries, strings and numbers only."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from vlm.checkpoint.inert import FAULTS
from vlm.common.errors import DataError
from vlm.common.files import open_regular


class _Plain(pickle._Unpickler):
    """Python's own implementation: the one in C allocates what a file declares before it reads."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}; only plain lists, dictionaries and values are read")


def read_plain_pickle(path: str | Path, what: str) -> Any:
    """The contents of a pickle that holds plain values.

    Raises DataError: missing, damaged, or naming a class or function (none is ever imported or called).
    """
    file = Path(path)
    try:
        with open_regular(file) as stream:
            return _Plain(stream, encoding="utf-8").load()
    except FileNotFoundError:
        raise DataError(f"{what}: no file {file}", fix="check the paths under build_info of the dataset") from None
    except OSError as error:
        raise DataError(f"{what}: {file} cannot be read ({error.strerror})") from error
    except FAULTS as error:
        raise DataError(
            f"{what}: {file} is refused: {str(error) or 'it declares more than it has'}",
            fix="fetch the published file again",
        ) from None
