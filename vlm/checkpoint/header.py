"""What a weight file declares: names, shapes and types, checked against the file before anything is allocated."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlm.checkpoint.inert import FAULTS, KNOWN, InertUnpickler, OpaqueObject
from vlm.common.errors import WeightsError
from vlm.common.file_kind import kind_of

MAX_PICKLE = 2**28
"""Bytes of the largest pickle (names, shapes and plain values, without the numbers of tensors) that is read."""
CONVERT = "convert it where you trust it: load it and save {name: tensor} with safetensors.torch.save_file"


class _Storage(NamedTuple):
    """The numbers of one or more tensors, as declared."""

    dtype: torch.dtype | None  # None: untyped, the tensors say
    bytes: int


def check_file(path: Path) -> str:
    """Check the declarations of a weight file; returns its :attr:`FileKind.name`.

    Raises:
        WeightsError: it is something else than a weight file (the message says what), or declares a storage that is not
            in it, a tensor that is not in its storage, or more data than it has.
    """
    try:
        state = path.stat()
        kind = kind_of(path)
    except OSError as error:
        raise WeightsError(f"weight file {path} cannot be read ({error.strerror})") from error
    if kind.name == "pickle":
        raise WeightsError(f"{path}: {kind.about}; reading it would run code, which is never done here", fix=CONVERT)
    if kind.name not in ("safetensors", "torch", "legacy", "torchscript"):
        raise WeightsError(f"{path}: not a weight file but {kind.about}", fix=kind.fix)
    if kind.name != "safetensors":
        declared(path, state.st_size, state.st_mtime_ns)
    return kind.name


def header(path: Path) -> dict[str, Tensor]:
    """Name -> shape and dtype, as tensors on the device ``meta``, of one file; no numbers are read.

    Tensors below the sections ``model`` and ``state_dict`` of a torch file have their names in the section.

    Raises WeightsError as :func:`check_file`, or for a damaged file.
    """
    if check_file(path) == "safetensors":
        return _safetensors_header(path)
    state = path.stat()
    content = declared(path, state.st_size, state.st_mtime_ns)
    for section in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(section), Mapping):
            content = content[section]
    items = content.items() if isinstance(content, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, Tensor)}


def _safetensors_header(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
            return {
                name: torch.empty(item.get_shape(), dtype=TYPES.get(item.get_dtype(), torch.uint8), device="meta")
                for name, item in slices.items()
            }
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise damaged(path, error) from error


TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
"""Names of safetensors."""


def damaged(path: Path, error: Exception) -> WeightsError:
    """The error about a file that ends early or contradicts itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = f"{path}: damaged or truncated ({path.stat().st_size:,} bytes; {lines[0][:160]})"
    return WeightsError(text, fix="download or copy the file again and compare its size")


@lru_cache(maxsize=16)
def declared(path: Path, size: int, changed: int) -> Any:
    """The content of a torch file with tensors on the device ``meta``; all that it declares is in its ``size`` bytes.

    ``changed`` (time of the last change) makes the result of an earlier call invalid.
    """
    try:
        if kind_of(path).name == "legacy":
            return _read_legacy(path, size)
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, size)
    except FAULTS as error:
        raise damaged(path, error) from error


def _read_archive(archive: zipfile.ZipFile, size: int) -> Any:
    names = archive.namelist()
    structures = [name for name in names if name.endswith("/data.pkl")]
    if len(set(names)) != len(names) or len(structures) != 1:
        raise ValueError(f"{len(structures)} records data.pkl (expected 1), or two records of one name")
    root = structures[0].removesuffix("data.pkl")
    records = [record for record in archive.infolist() if not record.filename.startswith(f"{root}code/")]
    if packed := [r.filename for r in records if r.compress_type != zipfile.ZIP_STORED or r.flag_bits & 1]:
        raise ValueError(f"{packed[0]} is compressed or encrypted; torch.save does neither")
    if (total := sum(record.file_size for record in records)) > size:
        raise ValueError(f"declares {total:,} bytes of records")
    if archive.getinfo(structures[0]).file_size > MAX_PICKLE:
        raise ValueError(f"data.pkl has {archive.getinfo(structures[0]).file_size:,} bytes, allowed {MAX_PICKLE:,}")
    sizes = {name.removeprefix(f"{root}data/"): archive.getinfo(name).file_size for name in names}

    def find(key: str, need: int) -> None:
        if need > sizes.get(key, 0):
            raise ValueError(f"storage {key} declares {need:,} bytes, the file has {sizes.get(key, 0):,} of it")

    with archive.open(structures[0]) as file:
        return _Structure(file, size, find).load()


def _read_legacy(path: Path, size: int) -> Any:
    """Of a file of torch before 1.6: pickles one after the other, then the storages."""
    total = [0]

    def find(key: str, need: int) -> None:
        total[0] += need
        if total[0] > size:
            raise ValueError(f"its storages declare {total[0]:,} bytes and more")

    with path.open("rb") as file:
        content: Any = None
        for _ in range(4):  # signature, version, sizes of the machine, content
            content = _Structure(file, size, find).load()
            if file.tell() > MAX_PICKLE:
                raise ValueError(f"its structure has more than {MAX_PICKLE:,} bytes")
        return content


class _Structure(InertUnpickler):
    """Tensors become tensors on the device ``meta``, after a check that they are within the file."""

    def __init__(self, file: Any, size: int, find: Callable[[str, int], None]) -> None:
        super().__init__(file)
        self.size = size
        self.find = find
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Called by the unpickler for each class that the file names."""
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_tensor"):
            return self.tensor
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype):
            return found
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return KNOWN["torch._utils._rebuild_parameter"]
        if (module, name) in (("torch.storage", "UntypedStorage"), ("torch", "UntypedStorage")):
            return None
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ``("storage", type, key, device, count)``, in older files with a view of another at the end."""
        _, dtype, key, _, count, *_ = pid
        if isinstance(dtype, type) and issubclass(dtype, OpaqueObject):
            raise ValueError(f"a storage of the unknown type {dtype.kind}")
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"storage {key} has the size {count!r}")
        if key not in self.storages:
            need = count * (1 if dtype is None else dtype.itemsize)
            self.find(str(key), need)
            self.storages[key] = _Storage(dtype, need)
        return self.storages[key]

    def tensor(self, storage: _Storage, offset: int, size: Any, stride: Any, *more: Any) -> Tensor:
        """Its shape and dtype. Raises ValueError: it is not within its storage, or larger than the file."""
        dtype = next((item for item in more if isinstance(item, torch.dtype)), storage.dtype)
        numbers = [offset, *size, *stride]
        if dtype is None or any(not isinstance(n, int) or n < 0 for n in numbers) or len(size) != len(stride):
            raise ValueError(f"a tensor of shape {list(size)}, strides {list(stride)}, offset {offset}, type {dtype}")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if count else offset
        if last * dtype.itemsize > storage.bytes or count * dtype.itemsize > self.size:
            raise ValueError(
                f"a tensor of shape {list(size)}, strides {list(stride)}, offset {offset} in {storage.bytes:,} bytes"
            )
        return torch.empty(size, dtype=dtype, device="meta")
