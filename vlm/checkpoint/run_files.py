"""Which files of a folder are a run's own, and whether those of a checkpoint are as they were written.

Only what these lists name is ever deleted; everything else in a run folder stays.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlm.checkpoint.safe import read_file
from vlm.common.errors import UserError, WeightsError
from vlm.common.owned import replace_text

log = logging.getLogger(__name__)

WEIGHTS, STATE, CHECKSUMS = "model.safetensors", "trainer.pt", "checksums.json"
PARTS = re.compile(r"(weights|optimizer)\.\d{5}\.safetensors")
"""Files of a sharded run, one of each process; those of weights are joined and removed before a checkpoint is there."""
MANIFEST = "run_files.json"
"""In a run folder: the names of :data:`OURS`, written by the run that made them."""

FILES = ("config.yaml", "log.jsonl", "quarantine.jsonl", "report.html", "verify.json")
PROFILE_FOLDER, PROFILE = "profile", ("trace.json.gz", "operations.txt", "operations.json")
OURS = (*FILES, "tensorboard", PROFILE_FOLDER, "checkpoints", "last", "best")
LINKS = ("last", "best")
_EVENTS = "events.out.tfevents.*"
_CHUNK = 1 << 22


def refuse_place(path: Path, key: str = "run.output_dir") -> None:
    """Raises UserError: a run must not write there, since the folder is not one of its own."""
    place, here, home = path.resolve(), Path.cwd().resolve(), Path.home().resolve()
    package = Path(__file__).resolve().parents[1]
    why = ""
    if path.exists() and not path.is_dir():
        why = "is a file"
    elif place in (here, *here.parents):
        why = "is the working folder, or a folder above it"
    elif place in (home, *home.parents):
        why = "is the home folder, or a folder above it"
    elif place == package or package in place.parents or place in package.parents:
        why = "belongs to this library"
    elif place.is_dir() and (
        (place / ".git").exists() or (place / "pyproject.toml").exists() or any(place.glob("*.py"))
    ):
        why = "holds sources"
    if why:
        raise UserError(f"{key}={str(path)!r}: {why}", fix="name a folder for this run, e.g. output/mine")


def own_names(folder: Path) -> set[str]:
    """What the manifest of a run folder lists, without links to elsewhere; nothing if it cannot be read."""
    content = _json(folder / MANIFEST)
    names = content.get("names") if isinstance(content, dict) else None
    mine = {name for name in OURS if name in names} if isinstance(names, list) else set()
    return {name for name in mine if name in LINKS or not (folder / name).is_symlink()}


def foreign_names(folder: Path) -> list[str]:
    """The names of :data:`OURS` that are there although no run of ours made them."""
    mine = own_names(folder)
    return [name for name in OURS if os.path.lexists(folder / name) and name not in mine]


def write_manifest(folder: Path) -> None:
    """Note that the names of :data:`OURS` belong to the run that starts here."""
    text = json.dumps({"what": "files of a vlm run, which run.overwrite may delete", "names": OURS}, indent=1)
    replace_text(folder / MANIFEST, text + "\n")


def remove_run(folder: Path) -> None:
    """Delete what an earlier run of ours left, by its manifest; its folders go if nothing else is in them."""
    mine = own_names(folder)
    for name in mine & set(FILES):
        if (folder / name).is_file():
            (folder / name).unlink()
    for name in mine & set(LINKS):
        if (folder / name).is_symlink():
            (folder / name).unlink()
    if "tensorboard" in mine:
        remove_listed(folder / "tensorboard", [f.name for f in (folder / "tensorboard").glob(_EVENTS)])
    if PROFILE_FOLDER in mine:
        remove_listed(folder / PROFILE_FOLDER, PROFILE)
    if "checkpoints" in mine and (folder / "checkpoints").is_dir():
        for checkpoint in (folder / "checkpoints").iterdir():
            if is_checkpoint(checkpoint):
                remove_checkpoint(checkpoint)
        remove_listed(folder / "checkpoints", [])


def is_checkpoint(folder: Path) -> bool:
    """Whether ``step_N`` is a folder with weights in it."""
    named = re.fullmatch(r"step_([0-9]{8}|[1-9][0-9]{8,})", folder.name)  # no number has two names
    return bool(named) and (folder / WEIGHTS).is_file() and not folder.is_symlink()


def remove_checkpoint(folder: Path) -> bool:
    """Delete the files that a checkpoint lists (of earlier versions: its usual ones), and the folder if it is empty."""
    names = [*_listed(folder), CHECKSUMS]
    unfinished = [
        f.name for f in folder.glob(".*") for name in names if re.fullmatch(rf"\.{re.escape(name)}\.\d+", f.name)
    ]
    parts = [f.name for f in folder.glob("*.safetensors") if PARTS.fullmatch(f.name)]
    return remove_listed(folder, dict.fromkeys([*names, *unfinished, *parts]))


def remove_listed(folder: Path, names: Iterable[str]) -> bool:
    """Delete files of a folder, and the folder if it is empty then; whether it is gone."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    for name in names:
        if name == Path(name).name and (folder / name).is_file():
            (folder / name).unlink()
    try:
        folder.rmdir()
    except OSError:  # something else is in it
        log.warning("%s: not deleted, since it holds files of others", folder)
        return False
    return True


def _listed(folder: Path) -> list[str]:
    listed = _json(folder / CHECKSUMS)
    return list(listed) if isinstance(listed, dict) else [WEIGHTS, STATE, "config.yaml", "provenance.json"]


def _json(file: Path) -> Any:
    """The content of a small JSON file; None if it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_checksums(folder: Path, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Note size and CRC-32 of every file of a checkpoint; the cost is one pass over files that were just written.

    ``known`` has those of files that other processes wrote.
    """
    found = {f.name: known.get(f.name) or entry_of(f) for f in sorted(folder.iterdir())}
    (folder / CHECKSUMS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def entry_of(file: Path) -> dict[str, Any]:
    """Size and CRC-32 of a file."""
    return {"bytes": file.stat().st_size, "crc32": _crc(file)}


def damage(folder: Path) -> str:
    """What is wrong with the files of a checkpoint; empty if they are as they were written.

    A checkpoint of an earlier version, without checksums, is read instead.
    """
    try:
        stamp = tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir()) if f.is_file())
        return _damage(folder, stamp)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


@lru_cache(maxsize=256)
def _damage(folder: Path, stamp: Any) -> str:
    if not (folder / CHECKSUMS).exists():
        try:
            for name in (WEIGHTS, STATE):
                if name == WEIGHTS or (folder / name).exists():
                    read_file(folder / name, mapped=False)
        except WeightsError as error:
            return str(error).splitlines()[0]
        return ""
    try:
        listed = _json(folder / CHECKSUMS)
        wanted = {str(name): (int(entry["bytes"]), str(entry["crc32"])) for name, entry in listed.items()}
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError):
        return f"{CHECKSUMS} is damaged"
    for name in dict.fromkeys((WEIGHTS, STATE, *wanted)):
        file = folder / name
        if name not in wanted or name != file.name or not file.is_file():
            return f"{name} is missing"
        size, checksum = wanted[name]
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes, {size:,} were written"
        if _crc(file) != checksum:
            return f"{name} is not what was written (its checksum differs)"
    return _of_another_step(folder)


def _of_another_step(folder: Path) -> str:
    """Whether files as they were written are of another step, a copy in the wrong place, or no weights at all."""
    from safetensors import SafetensorError, safe_open

    stated = re.fullmatch(r"step_([0-9]+)", folder.name)
    try:
        with safe_open(folder / WEIGHTS, "pt") as tensors:
            step = (tensors.metadata() or {}).get("step", "")
    except SafetensorError as error:
        return f"{WEIGHTS} is not a weight file ({error})"
    if stated and step.isdecimal() and int(step) != int(stated[1]):
        return f"{WEIGHTS} is of step {step}"
    return ""


def _crc(file: Path) -> str:
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def flush(path: Path) -> None:
    """Ask the system to put a file's or folder's content on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
