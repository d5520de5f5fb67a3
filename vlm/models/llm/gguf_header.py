"""What a GGUF file declares, read with nothing but the standard library and checked against the file's size.

Every count and length is compared with the bytes that are left before anything is read or allocated, so that other
readers can be given the file afterwards. Source of the format: the specification of ggml, ``docs/gguf.md``.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlm.common.errors import WeightsError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**16
ARCHITECTURE, TEMPLATE = "general.architecture", "tokenizer.chat_template"
AGAIN = "download the file again, and compare its size with the published one"

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class DeclaredTensor:
    """A tensor of the file: ``shape`` in the order of torch, number of its type, place of its bytes in the file."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GGUFHeader:
    """What comes before the numbers.

    Attributes:
        path: the file.
        size: its bytes.
        metadata: keys and values; of an array only its length.
        tensors: by name.
    """

    path: Path
    size: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, DeclaredTensor]

    @property
    def architecture(self) -> str:
        """The name that llama.cpp has for the family."""
        return str(self.metadata[ARCHITECTURE])


class _Fault(Exception):
    """What is wrong with a file."""


class _Cursor:
    """A place in the file; nothing is read beyond its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def skip(self, size: int, what: str) -> int:
        """Where the next ``size`` bytes begin."""
        start = self.at
        if size > len(self.data) - start:
            raise _Fault(f"{what} of {size:,} bytes, but only {len(self.data) - start:,} are left in the file")
        self.at += size
        return start

    def numbers(self, layout: str, what: str) -> tuple[Any, ...]:
        """Numbers of fixed width."""
        return struct.unpack_from(f"<{layout}", self.data, self.skip(struct.calcsize(f"<{layout}"), what))

    def string(self, what: str) -> str:
        """A text with its length before it."""
        start = self.skip(self.numbers("Q", f"the length of {what}")[0], what)
        try:
            return self.data[start : self.at].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Fault(f"{what} that is not UTF-8") from error

    def value(self, kind: int, key: str) -> Any:
        """A value; of an array its length."""
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind], f"value of {key}")[0]
        if kind == _STRING:
            return self.string(f"value of {key}")
        if kind != _ARRAY:
            raise _Fault(f"{key} with a value of the unknown type {kind}")
        inner, count = self.numbers("IQ", f"the length of {key}")
        if inner in _NUMBERS:
            self.skip(count * struct.calcsize(f"<{_NUMBERS[inner]}"), f"array {key}")
        elif inner == _STRING:
            self._enough(count, 8, f"texts in {key}")
            for _ in range(count):
                self.skip(self.numbers("Q", f"the length of a text in {key}")[0], f"text in {key}")
        else:
            raise _Fault(f"{key} is an array of the unknown or nested type {inner}")
        return count

    def _enough(self, count: int, least: int, what: str) -> None:
        if count * least > len(self.data) - self.at:
            raise _Fault(f"{count:,} {what}, which need more bytes than the file has")

    def metadata(self, count: int) -> dict[str, Any]:
        """``count`` keys and values."""
        self._enough(count, 13, "metadata keys")
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.string("a key")
            if key in found:
                raise _Fault(f"the key {key!r} twice")
            found[key] = self.value(self.numbers("I", f"type of {key}")[0], key)
        return found

    def tensors(self, count: int) -> dict[str, tuple[tuple[int, ...], int, int]]:
        """``count`` names with shape, type and offset."""
        self._enough(count, 24, "tensors")
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name = self.string("the name of a tensor")
            (dimensions,) = self.numbers("I", f"dimensions of {name}")
            if name in found or not 1 <= dimensions <= MAX_DIMENSIONS:
                raise _Fault(f"the tensor {name!r} {'twice' if name in found else f'with {dimensions:,} dimensions'}")
            shape = self.numbers(f"{dimensions}Q", f"shape of {name}")
            if not all(shape):
                raise _Fault(f"the tensor {name!r} of the shape {list(shape)}")
            kind, offset = self.numbers("IQ", f"type and place of {name}")
            found[name] = (shape[::-1], kind, offset)
        return found


def is_gguf(path: str | Path) -> bool:
    """Whether ``path`` is a file that begins as GGUF files do."""
    path = Path(path).expanduser()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: str | Path) -> GGUFHeader:
    """Metadata and tensor table of a GGUF file; no tensor is read.

    Raises WeightsError: another kind or version of file, cut off, or one that declares more than it has.
    """
    path = Path(path).expanduser()
    try:
        state = path.stat()
        return _read(path, state.st_size, state.st_mtime_ns)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error})", fix=AGAIN) from error


@lru_cache(maxsize=4)
def _read(path: Path, size: int, changed: int) -> GGUFHeader:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        try:
            magic, version = data[:4], cursor.numbers("4xI", "header")[0]
            if magic != MAGIC or version not in VERSIONS:
                raise _Fault(f"version {version}" if magic == MAGIC else "another kind of file")
            tensors, keys = cursor.numbers("QQ", "header")
            metadata = cursor.metadata(keys)
            if not isinstance(metadata.get(ARCHITECTURE), str):
                raise _Fault(f"no {ARCHITECTURE}")
            table = cursor.tensors(tensors)
            align = metadata.get("general.alignment", 32)
            if not isinstance(align, int) or not 1 <= align <= MAX_ALIGNMENT:
                raise _Fault(f"the alignment {align!r}")
            start = -(-cursor.at // align) * align
        except _Fault as fault:
            versions = " or ".join(map(str, VERSIONS))
            raise WeightsError(
                f"{path}: not a whole GGUF file of version {versions}: found {fault}", fix=AGAIN
            ) from None
    placed = {name: DeclaredTensor(shape, kind, start + offset) for name, (shape, kind, offset) in table.items()}
    return GGUFHeader(path, size, metadata, placed)
