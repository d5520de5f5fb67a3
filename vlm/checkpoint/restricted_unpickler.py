"""Reading torch archives whose pickles name classes of other packages, without importing or running any of them.

Tensors become tensors; an object of any other class becomes an :class:`OpaqueObject`. Two kinds of published files
need this: TorchScript archives (OpenAI's ``ViT-L-14.pt``), whose code is not read, and checkpoints that contain a
settings object of a configuration library.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.header import check_file
from vlm.checkpoint.inert import FAULTS, InertUnpickler, OpaqueObject
from vlm.common.errors import WeightsError

MAX_MODULES = 10_000
"""Modules of a TorchScript archive that are looked at."""


def read_without_code(path: Path) -> Any:
    """Plain data, tensors and :class:`OpaqueObject` of a torch archive. Raises WeightsError if it is damaged."""
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if name is None:
                raise WeightsError(f"{path}: not a torch archive (no data.pkl inside)")
            with archive.open(name) as file:
                return _Reader(file, archive, name.removesuffix("data.pkl")).load()
    except FAULTS as error:
        raise WeightsError(
            f"{path}: damaged, truncated or of an unknown layout ({error})", fix="download or copy the file again"
        ) from error


def plain(value: Any) -> Any:
    """``value`` with mappings and settings objects as dicts, to any depth; tensors stay.

    A settings object is one that was built from a dict, or whose state begins with such an object.
    """
    return _plain(value, {})


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """``done``: results by the id of what was begun, so that shared and endless structures end."""
    if not isinstance(value, OpaqueObject | dict | list | tuple):
        return value
    if id(value) in done:
        return done[id(value)]
    done[id(value)] = None
    if isinstance(value, OpaqueObject):
        inside = [*value.arguments, *(value.state if isinstance(value.state, tuple) else (value.state,))]
        result = _plain(next((item for item in inside if isinstance(item, dict | OpaqueObject)), {}), done)
    elif isinstance(value, dict):
        result = {key: _plain(item, done) for key, item in value.items()}
    else:
        result = [_plain(item, done) for item in value]
    done[id(value)] = result
    return result


def named_tensors(module: Any) -> dict[str, Tensor]:
    """The tensors of a module tree read from a TorchScript archive, by their state-dict names.

    Raises WeightsError: modules inside each other without end.
    """
    result: dict[str, Tensor] = {}
    queue, seen = [("", module)], 0
    while queue:
        prefix, inner = queue.pop()
        seen += 1
        if seen > MAX_MODULES:
            raise WeightsError(f"a TorchScript archive with more than {MAX_MODULES} modules", fix="download it again")
        state = inner.state if isinstance(inner, OpaqueObject) else inner
        for name, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, Tensor):
                result[f"{prefix}{name}"] = value
            elif isinstance(value, OpaqueObject):
                queue.append((f"{prefix}{name}.", value))
    return result


class _Reader(InertUnpickler):
    """Of an archive, with the storages that it needs."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive = archive
        self.root = root
        self.storages: dict[str, Tensor] = {}

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage as a flat tensor."""
        _, dtype, key, *_ = pid
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"a storage of the unknown type {dtype.kind}")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]
