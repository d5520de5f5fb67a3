"""A Hugging Face folder of a supported architecture as a source: ``vlm.load(DIR)``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.common.errors import UserError, WeightsError
from vlm.common.registry import names, register_source, resolve
from vlm.config.api import Config, load_config
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.folder import ModelFolder
from vlm.inference.load import Source
from vlm.models.hf.config import CONTRADICTIONS
from vlm.models.published import is_known

log = logging.getLogger(__name__)

CONFIG = "config.json"
GUIDE = "docs/guides/from_hugging_face.md"


def model_type_of(path: Path) -> str | None:
    """``model_type`` of a folder's config.json; None: there is no such file, or it states none."""
    try:
        content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    stated = content.get("model_type") if isinstance(content, dict) else None
    return stated if isinstance(stated, str) else None


def architecture_of(path: Path) -> Architecture:
    """The architecture of a folder.

    Raises WeightsError: not a folder of a supported one; the message lists them.
    """
    supported = ", ".join(names("architecture"))
    if path.is_file() or not (path / CONFIG).is_file():
        raise _no_folder(path, supported)
    kind = model_type_of(path)
    if kind is None:
        raise WeightsError(f"{path / CONFIG}: states no model_type", fix="download it again")
    if kind not in names("architecture"):
        text = f"{path}: model_type {kind!r} is not one that can be read as a whole (supported: {supported})"
        fix = f"an LLM or a vision encoder alone goes into a composition: {{path: {path}}}, see {GUIDE}"
        raise WeightsError(text, fix=fix)
    return resolve("architecture", kind)()  # type: ignore[no-any-return]


def _no_folder(path: Path, supported: str) -> WeightsError:
    if path.suffix == ".gguf" or (path.is_dir() and list(path.glob("*.gguf"))):
        return WeightsError(
            f"{path}: a GGUF file, which does not say how its vision encoder and bridge work",
            fix=f"import the folder that it was made from, with config.json and safetensors (supported: {supported})",
        )
    found = "no such folder" if not path.exists() else "a file" if path.is_file() else "no config.json in it"
    return WeightsError(f"{path}: {found}, expected a Hugging Face folder", fix=f"supported: {supported}")


def model_section(path: Path) -> dict[str, Any]:
    """The ``model:`` section of a folder of a supported architecture.

    Raises UserError: unsupported, incomplete, of mixed types, or something that no part computes.
    """
    kind = architecture_of(path)
    folder = ModelFolder(path)
    if "auto_map" in folder.stated:
        log.warning("%s: its Python code (auto_map) is not run; the model is built from parts of this package", path)
    if stated := folder.stated.get("quantization_config"):
        method = stated.get("quant_method") if isinstance(stated, dict) else stated
        fix = "use the folder of the model from before quantisation; --load-in-8bit quantises when it is loaded"
        raise WeightsError(f"{path}: quantised weights ({method}) cannot be read", fix=fix)
    try:
        section = kind.composition(folder)
    except CONTRADICTIONS as error:
        text = f"{path}: a value in config.json or in the files beside it cannot be used ({error!s:.300})"
        raise WeightsError(text, fix="download these files again") from error
    train = dict.fromkeys(kind.trains, True)
    return section | {"train": train, "weights": [{"format": kind.format, "path": str(folder.path)}]}


@register_source("hugging_face")
class HuggingFaceFolder(Source):
    """A folder of a published model, such as a download of the Hub; nothing in it is executed."""

    def recognises(self, path: Path) -> bool:
        """Whether it has a config.json of a type that transformers knows, and is neither a run nor an adapter."""
        others = ("config.yaml", "checkpoints", "adapter_config.json")
        if not (path / CONFIG).is_file() or any((path / name).exists() for name in others):
            return False
        kind = model_type_of(path)
        return kind is not None and (kind in names("architecture") or is_known(kind))

    def config(self, path: Path, options: Sequence[str] = ()) -> Config:
        """The composition of the folder. Raises UserError as :func:`model_section`."""
        return load_config({"model": model_section(path)}, options)


__all__ = ["HuggingFaceFolder", "UserError", "architecture_of", "model_section"]
