"""Unpickling without importing or running anything: the base of all readers of torch files.

Objects of classes that a file names become :class:`OpaqueObject`.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

FAULTS = (
    pickle.UnpicklingError, struct.error, zipfile.BadZipFile, AssertionError, AttributeError, EOFError, IndexError,
    KeyError, MemoryError, NotImplementedError, OSError, OverflowError, RecursionError, RuntimeError, TypeError,
    ValueError,
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


_STORAGES = {
    "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    "QInt8": torch.qint8, "QUInt8": torch.quint8, "QInt32": torch.qint32,
}  # fmt: skip
KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "collections.OrderedDict": OrderedDict,
    **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
}
"""What replaces the classes and functions that a file may name; all others become opaque."""
