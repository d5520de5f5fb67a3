"""Reading weight files without ever running code from them, and the small files next to them."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.header import CONVERT, check_file, damaged, header
from vlm.checkpoint.inert import FAULTS
from vlm.common.errors import WeightsError
from vlm.common.file_kind import mistaken
from vlm.common.paths import inner_folder

CODE = ("Unsupported", "not an allowed", "GLOBAL")
"""Words of torch's messages about a pickle that names a function or class."""


def read_file(path: str | Path, *, mapped: bool = True) -> Any:
    """The content of one file: a dict of tensors (.safetensors), or whatever plain data a torch file holds.

    The content decides which it is, not the name. Tensors stay on the CPU and, if ``mapped`` and where the container
    allows, are mapped from disk instead of read.

    Raises:
        WeightsError: no such file, something else than a weight file, a damaged or truncated one, one that declares
            more than it has, or a pickle that contains code.
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            raise WeightsError(f"weight file {path}: is a folder", fix="name a file in it")
        if path.exists():
            raise WeightsError(f"weight file {path}: a device or pipe, not a file", fix="name a file")
        raise WeightsError(f"weight file {path}: no such file", fix="check the path; is the download complete?")
    kind = check_file(path)
    if kind == "torchscript":
        raise WeightsError(
            f"{path}: a TorchScript archive, a program with its weights, which is not run here",
            fix="CLIP of OpenAI is {format: openai_clip}; save the state_dict() of anything else",
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if kind == "safetensors":
            return load_file(path, device="cpu")
        if mapped and kind == "torch" and path.suffix != ".safetensors":  # the older container cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:  # torch goes by a name, if it is given one
            return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, *FAULTS) as error:
        text = str(error)
        if isinstance(error, pickle.UnpicklingError) and any(word in text for word in CODE):
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            reason = next((line for line in lines if "GLOBAL" in line and "default" in line), lines[0])[:160]
            raise WeightsError(
                f"{path}: this pickle would run code, which is never done here ({reason})", fix=CONVERT
            ) from error
        raise damaged(path, error) from error


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
    for name, tensor in tensors.items():
        check_plain(name, tensor, path)
    return tensors


def check_plain(name: str, tensor: Tensor, path: str | Path) -> None:
    """Raises WeightsError for a tensor that no parameter or buffer of ours can take: sparse, quantised, complex, ..."""
    quantised = tensor.is_quantized or "float4" in str(tensor.dtype)
    kinds = {"sparse": tensor.layout != torch.strided, "quantised": quantised, "complex": tensor.is_complex()}
    kinds |= {"nested": tensor.is_nested, "without numbers (device meta)": tensor.is_meta}
    if odd := [kind for kind, found in kinds.items() if found]:
        raise WeightsError(
            f"{path}: {name} is {odd[0]} ({str(tensor.dtype).removeprefix('torch.')}), expected plain numbers",
            fix="convert it: a dense tensor of float32, float16 or bfloat16",
        )


def shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a weight file, or of a Hugging Face folder; cheap, no numbers are read.

    Raises WeightsError: nothing there, something else than a weight file, a damaged file.
    """
    path = Path(path).expanduser()
    files = shards(path) if path.is_dir() else [path]
    return {name: tuple(fact.shape) for file in files for name, fact in header(file).items()}


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
            strange = [name for name in where.values() if not _inside(name)]
            if strange:
                raise WeightsError(
                    f"{index}: names {strange[0]!r}, which is not a file in its folder", fix="download it again"
                )
            names = sorted(set(where.values()))
            missing = [n for n in names if not (folder / n).is_file()]
            if missing:
                text = f"{folder}: {', '.join(missing)} named by {index.name} but missing"
                raise WeightsError(text, fix="download again")
            return [folder / n for n in names]
        if (folder / name).is_file():
            return [folder / name]
    if parts := sorted(folder.glob("*-of-*")):
        lost = f"{'model.safetensors' if parts[0].suffix == '.safetensors' else 'pytorch_model.bin'}.index.json"
        raise WeightsError(f"{folder}: {parts[0].name} is one of several, but {lost} is missing", fix="download it too")
    raise WeightsError(
        f"{folder}: no weights (model.safetensors, pytorch_model.bin, or their .index.json)",
        fix="give a Hugging Face folder with its weights; a delta must be applied to its base first",
    )


def _inside(name: Any) -> bool:
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name


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
    except (ValueError, RecursionError, OSError) as error:
        text = mistaken(file) or f"{file}: not JSON ({error})"
        raise WeightsError(text, fix="download it again") from error
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
