"""Unpickling without importing or running anything: the base of all readers of torch files.

Objects of classes that a file names become :class:`OpaqueObject`.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

FAULTS = (
    pickle.UnpicklingError, zipfile.BadZipFile, AttributeError, EOFError, IndexError, KeyError, MemoryError,
    NotImplementedError, OSError, OverflowError, RecursionError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What reading a damaged or hostile pickle or archive raises."""


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


class InertUnpickler(pickle._Unpickler):
    """Imports nothing: a name gives one of :data:`KNOWN`, or a subclass of :class:`OpaqueObject`.

    Python's own implementation: the one in C allocates what a file declares before it reads.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")
        self.kinds: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Called by the unpickler for each class that the file names."""
        key = f"{module}.{name}"
        return KNOWN.get(key) or self.kinds.setdefault(key, type("OpaqueObject", (OpaqueObject,), {"kind": key}))


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
