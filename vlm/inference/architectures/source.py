"""A Hugging Face folder of a supported architecture as a source: ``vlm.load(DIR)``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.common.errors import UserError, WeightsError
from vlm.common.registry import names, register_source, resolve
from vlm.common.text import read_text
from vlm.config.api import Config, load_config
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.folder import ModelFolder
from vlm.inference.load import Source
from vlm.models.hf.config import CONTRADICTIONS
from vlm.models.published import is_known

log = logging.getLogger(__name__)

CONFIG = "config.json"
MAX_BYTES = 2**24
"""The largest published config.json is a few tens of kilobytes."""
SOURCE = "hugging_face"
GUIDE = "docs/guides/from_hugging_face.md"


def stated_in(path: Path) -> dict[str, Any]:
    """The content of a folder's config.json; empty if there is no such file, or no mapping in it."""
    try:
        content = json.loads(read_text(path / CONFIG, max_bytes=MAX_BYTES))
    except (UserError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def model_type_of(path: Path) -> str | None:
    """``model_type`` of a folder's config.json, if it states one."""
    stated = stated_in(path).get("model_type")
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
        if "auto_map" in stated_in(path) and not is_known(kind):
            text = (
                f"{path}: a model {kind!r} that only Python code in the folder describes (auto_map), which is never run"
            )
            raise WeightsError(text, fix=f"use a model that transformers itself has (supported: {supported})")
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
        """Whether it has a config.json of a published model, and is neither a run nor an adapter."""
        ours = ("config.yaml", "checkpoints", "adapter_config.json")
        if not (path / CONFIG).is_file() or any((path / name).exists() for name in ours):
            return False
        stated, kind = stated_in(path), model_type_of(path)
        if kind is None or kind in names("architecture") or is_known(kind):
            return kind is not None
        others = (resolve("source", name)() for name in names("source") if name != SOURCE)
        return "auto_map" in stated and not any(other.recognises(path) for other in others)

    def config(self, path: Path, options: Sequence[str] = ()) -> Config:
        """The composition of the folder. Raises UserError as :func:`model_section`."""
        return load_config({"model": model_section(path)}, options)
