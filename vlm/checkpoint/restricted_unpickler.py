"""Reading torch archives whose pickles name classes of other packages, without importing or running any of them.

Tensors become tensors; an object of any other class becomes an :class:`OpaqueObject`. Two kinds of published files
need this: TorchScript archives (OpenAI's ``ViT-L-14.pt``), whose code is not read, and checkpoints that contain a
settings object of a configuration library.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.safe import DAMAGE
from vlm.common.errors import WeightsError


class OpaqueObject:
    """What a file says about an object: the ``arguments`` of its constructor, and its ``state``."""

    kind = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Lists and sets of foreign classes are filled item by item; the items are not kept."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """The same for mappings."""


def read_without_code(path: Path) -> Any:
    """Plain data, tensors and :class:`OpaqueObject` of a torch archive. Raises WeightsError if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if name is None:
                raise WeightsError(f"{path}: not a torch archive (no data.pkl inside)")
            with archive.open(name) as file:
                return _Reader(file, archive, name.removesuffix("data.pkl")).load()
    except (pickle.UnpicklingError, TypeError, IndexError, AttributeError, *DAMAGE) as error:
        raise WeightsError(
            f"{path}: damaged, truncated or of an unknown layout ({error})", fix="download or copy the file again"
        ) from error


def plain(value: Any) -> Any:
    """``value`` with mappings and settings objects as dicts, to any depth; tensors stay.

    A settings object is one that was built from a dict, or whose state begins with such an object.
    """
    if isinstance(value, OpaqueObject):
        inside = [*value.arguments, *(value.state if isinstance(value.state, tuple) else (value.state,))]
        return plain(next((item for item in inside if isinstance(item, dict | OpaqueObject)), {}))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def named_tensors(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a module tree read from a TorchScript archive, by their state-dict names."""
    result: dict[str, Tensor] = {}
    state = module.state if isinstance(module, OpaqueObject) else module
    for name, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, Tensor):
            result[f"{prefix}{name}"] = value
        elif isinstance(value, OpaqueObject):
            result |= named_tensors(value, f"{prefix}{name}.")
    return result


class _Reader(pickle.Unpickler):
    """Imports nothing: a name gives one of :data:`KNOWN`, or a subclass of :class:`OpaqueObject`."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.archive = archive
        self.root = root
        self.storages: dict[str, Tensor] = {}
        self.kinds: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Called by the unpickler for each class that the file names."""
        key = f"{module}.{name}"
        return KNOWN.get(key) or self.kinds.setdefault(key, type("OpaqueObject", (OpaqueObject,), {"kind": key}))

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage as a flat tensor."""
        _, dtype, key, *_ = pid
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"a storage of the unknown type {dtype.kind}")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)


_NAMES = ["Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool"]
_DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "collections.OrderedDict": OrderedDict,
    **{f"torch.{name}Storage": getattr(torch, dtype) for name, dtype in zip(_NAMES, _DTYPES, strict=True)},
}
"""What replaces the classes and functions that a file may name; all others become opaque."""
