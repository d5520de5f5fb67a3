"""Reading weight files without ever running code from them, and the small files next to them."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.common.errors import WeightsError
from vlm.common.paths import inner_folder

DAMAGE = (EOFError, RuntimeError, ValueError, KeyError, OSError, zipfile.BadZipFile)
"""What readers raise for damaged files."""


def read_file(path: str | Path, *, mapped: bool = True) -> Any:
    """The content of one file: a dict of tensors (.safetensors), or whatever plain data a torch file holds.

    Tensors stay on the CPU and, if ``mapped`` and where the container allows, are mapped from disk instead of read.

    Raises:
        WeightsError: no such file, a damaged or truncated file, or a pickle that contains code.
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            raise WeightsError(f"weight file {path}: is a folder", fix="name a file in it")
        raise WeightsError(f"weight file {path}: no such file", fix="check the path; is the download complete?")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        mapped = mapped and zipfile.is_zipfile(path)  # the older container cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, pickle.UnpicklingError, *DAMAGE) as error:
        text = str(error)
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if "GLOBAL" in line and "default" in line), lines[0])[:160]
        code = any(word in text for word in ("Unsupported", "not an allowed", "GLOBAL"))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise WeightsError(
                f"{path}: this pickle would run code, which is never done here ({reason})",
                fix="convert it where you trust it: load it and save {name: tensor} with safetensors.torch.save_file",
            ) from error
        raise WeightsError(
            f"{path}: damaged or truncated ({path.stat().st_size:,} bytes; {reason})",
            fix="download or copy the file again and compare its size",
        ) from error


def read_tensors(path: str | Path, section: str | None = None) -> dict[str, Tensor]:
    """The named tensors of a .safetensors, .pth, .pt or .bin file, or of the dict ``section`` in it if it has one.

    Raises WeightsError: as :func:`read_file`, or the file holds no dict of tensors.
    """
    content = read_file(path)
    if section is not None and isinstance(content, dict) and isinstance(content.get(section), dict):
        content = content[section]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        keys = f"keys {', '.join(map(str, list(content)[:6]))}" if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path}: holds no named tensors (found {keys})")
    return tensors


def shards(folder: str | Path) -> list[Path]:
    """The weight files of a Hugging Face folder, safetensors before bin, index before single file.

    Raises WeightsError: the folder has none, or a file named by its index is missing.
    """
    folder = Path(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            where = read_json(index).get("weight_map")
            if not isinstance(where, dict):
                raise WeightsError(f"{index}: not a shard index (no weight_map)")
            names = sorted(set(where.values()))
            missing = [n for n in names if not (folder / n).is_file()]
            if missing:
                text = f"{folder}: {', '.join(missing)} named by {index.name} but missing"
                raise WeightsError(text, fix="download again")
            return [folder / n for n in names]
        if (folder / name).is_file():
            return [folder / name]
    raise WeightsError(
        f"{folder}: no language-model weights (model.safetensors, pytorch_model.bin, or their .index.json)",
        fix="give a Hugging Face folder with its weights; a delta must be applied to its base first",
    )


def read_folder(path: Path, parts: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a file, or of all in a folder or in the one of ``parts`` below it; raises as :func:`shards`."""
    files = [path] if path.is_file() else shards(inner_folder(path, parts))
    return {name: tensor for file in files for name, tensor in read_tensors(file).items()}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON mapping. Raises WeightsError if there is no such file, or no mapping in it."""
    if not file.is_file():
        raise WeightsError(f"{file}: no such file", fix="is the download complete?")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file}: not JSON ({error})", fix="download it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: holds {type(content).__name__}, expected a mapping")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as transformers does, with an indent of 2 and every letter as itself."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_files(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy the files of these names that ``source`` has into the folder ``target``."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
