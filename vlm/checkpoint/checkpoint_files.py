"""The files of one checkpoint folder: their checksums, what is damaged in them, and deleting them.

``manifest.json`` holds step, size and CRC-32 of each file. CRC-32 finds every flipped bit and every damaged run of 32
bits, and costs about a quarter of a second per GB (4 GB/s on one core of a server, against 1.8 for SHA-256 and 0.9 for
BLAKE2b); it guards against accidents, not against people.
"""

from __future__ import annotations

import errno
import json
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint.provenance import FILE as PROVENANCE
from vlm.checkpoint.provenance import OLD_FILE as OLD_PROVENANCE
from vlm.checkpoint.safe import read_file, read_json
from vlm.common.errors import UserError, WeightsError
from vlm.common.owned import remove_if_empty, replace_text
from vlm.config.tree import parse_file

WEIGHTS = "model.safetensors"
STATE = "trainer.pt"
CONFIG = "config.yaml"
MANIFEST = "manifest.json"
ALL = (WEIGHTS, STATE, PROVENANCE, OLD_PROVENANCE, CONFIG, MANIFEST)
"""All files of a checkpoint, of every version."""

TO_LOAD = (WEIGHTS, CONFIG)
TO_RESUME = (WEIGHTS, STATE, PROVENANCE)
EDITABLE = (CONFIG, PROVENANCE, OLD_PROVENANCE)
"""Texts that people change by hand, e.g. a path: another checksum is only reported if the text cannot be read."""

_STEP = re.compile(r"step_([0-9]{8,})")
_CHUNK = 2**22


def step_of(name: str) -> int | None:
    """The step that a folder's name states, or None if it is not the name of a checkpoint."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found and name == f"step_{int(found[1]):08d}" else None


def is_ours(folder: Path) -> bool:
    """Whether a folder is a checkpoint of this library, however damaged."""
    names = (MANIFEST, PROVENANCE, OLD_PROVENANCE)
    return any((folder / n).is_file() for n in names) or all((folder / n).is_file() for n in (WEIGHTS, STATE))


def write_manifest(folder: Path, step: int) -> None:
    """Write the checksums of the files that are there."""
    files = {p.name: {"bytes": p.stat().st_size, "crc32": checksum(p)} for p in sorted(folder.iterdir())}
    replace_text(folder / MANIFEST, json.dumps({"format": 1, "step": step, "files": files}, indent=1) + "\n")


def checksum(file: Path) -> str:
    """CRC-32 of a file, in hexadecimal; computed once while the file stays as it is."""
    facts = file.stat()
    return _checksum(str(file.resolve()), facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _checksum(file: str, *_facts: int) -> str:
    value = 0
    with open(file, "rb") as content:
        while block := content.read(_CHUNK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def damage(folder: Path, needed: Sequence[str]) -> str:
    """What is wrong with the ``needed`` files of a checkpoint; empty if nothing is.

    Without a manifest (a checkpoint of an earlier version) only the containers of weights and state are checked.
    """
    try:
        if not folder.is_dir():
            return "no such folder"
        if not (folder / MANIFEST).is_file():
            return next(filter(None, (_unsound(folder, name) for name in needed)), "")
        manifest = _read_manifest(folder / MANIFEST)
        if isinstance(manifest, str):
            return manifest
        stated = step_of(folder.name)
        if stated is not None and manifest["step"] != stated:
            return f"{MANIFEST} is of step {manifest['step']}"
        return next(filter(None, (_differs(folder / n, manifest["files"].get(n)) for n in needed)), "")
    except OSError as error:
        return f"{Path(error.filename).name if error.filename else folder.name}: {error.strerror or error}"


def _read_manifest(file: Path) -> dict[str, Any] | str:
    """The content, or what is wrong with it."""
    try:
        content = json.loads(file.read_bytes())
        entries = content["files"].values()
        sound = isinstance(content["step"], int) and all(
            isinstance(e["bytes"], int) and isinstance(e["crc32"], str) for e in entries
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    return content if sound else f"{file.name} is not a list of checksums"


def _differs(file: Path, entry: dict[str, Any] | None) -> str:
    """How a file differs from its entry in the manifest."""
    if entry is None:
        return f"{MANIFEST} does not list {file.name}"
    if not file.is_file():
        return f"{file.name} is missing"
    size = file.stat().st_size
    if size == entry["bytes"] and checksum(file) == entry["crc32"]:
        return ""
    if file.name in EDITABLE:
        return _unreadable_text(file)
    if size != entry["bytes"]:
        return f"{file.name} has {size:,} bytes instead of {entry['bytes']:,}"
    return f"{file.name} was changed after it was saved (its checksum differs)"


def _unreadable_text(file: Path) -> str:
    try:
        content = parse_file(file).data if file.name == CONFIG else read_json(file)
    except UserError:
        content = {}
    return "" if content else f"{file.name} is damaged"


def _unsound(folder: Path, name: str) -> str:
    """What is wrong with a file that has no checksum."""
    from safetensors import SafetensorError, safe_open

    file = folder / name
    if name == PROVENANCE and not file.is_file():
        file = folder / OLD_PROVENANCE
    if not file.is_file():
        return f"{name} is missing"
    if name in EDITABLE:
        return _unreadable_text(file)
    try:
        if name == WEIGHTS:
            with safe_open(file, "pt") as tensors:
                step = (tensors.metadata() or {}).get("step")
            stated = step_of(folder.name)
            return (
                f"{name} is of step {step}" if step is not None and stated is not None and step != str(stated) else ""
            )
        with zipfile.ZipFile(file) as container:
            return f"{name} is damaged" if container.testzip() else ""
    except (SafetensorError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        return f"{name} is damaged ({error})"


def remove_checkpoint(folder: Path) -> bool:
    """Delete the files of a checkpoint and its folder, which stays if something else is in it; whether it is gone."""
    if folder.is_symlink():
        folder.unlink()
        return True
    for name in ALL:
        if (folder / name).is_file() or (folder / name).is_symlink():
            (folder / name).unlink(missing_ok=True)
    return remove_if_empty(folder)


def flush(path: Path) -> None:
    """Ask the system to put a file's or folder's content on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_tensors(work: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Weights and state. Raises OSError also for what the two writers raise where the disk fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, work / WEIGHTS, metadata={"format": "pt", "step": str(step)})
        with (work / STATE).open("wb") as file:
            torch.save(state, file)
    except (SafetensorError, RuntimeError) as error:  # torch says only that a part is missing
        number = re.search(r"os error ([0-9]+)", str(error))
        code = int(number[1]) if number else errno.EIO
        reason = os.strerror(code) if number else "not everything could be written; is the disk or the quota full?"
        raise OSError(code, reason, str(work)) from error


def read_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Trainable tensors and train state of a checkpoint. Raises WeightsError if a file is missing or damaged."""
    return read_file(folder / WEIGHTS), read_state(folder / STATE)


def check_plain(value: Any, where: str = "state") -> None:
    """Raises TypeError for the first object that ``torch.load(weights_only=True)`` would not read back."""
    inside: list[tuple[Any, str]] = []
    if isinstance(value, list | tuple):
        inside = [(item, f"{where}[{i}]") for i, item in enumerate(value)]
    elif isinstance(value, dict):
        inside = [pair for k, v in value.items() for pair in ((k, f"key of {where}"), (v, f"{where}.{k}"))]
    elif value is not None and not isinstance(value, bool | int | float | str | torch.Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}; train state holds only tensors and plain python values")
    for item, place in inside:
        check_plain(item, place)


def read_state(path: Path) -> dict[str, Any]:
    """Read ``trainer.pt``. Raises WeightsError if it is missing, unreadable or contains code."""
    state = read_file(path, mapped=False)
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds {type(state).__name__}, expected the state of a run")
    return state
