"""``vlm data shard``: any dataset written as web shards, in parallel, resumable."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vlm.common.errors import DataError
from vlm.common.paths import make_folder
from vlm.datasets.base import RECORD_FAULTS, read_record, text_roles
from vlm.datasets.formats.shard_sample import to_members
from vlm.datasets.inspect.scan import Opened, chunks, progress, references
from vlm.datasets.loading.quarantine import Quarantine
from vlm.datasets.loading.sampler import Ref
from vlm.datasets.loading.sources import BadRecord
from vlm.datasets.loading.worker import data_loader

MANIFEST = "manifest.json"
_PART = re.compile(r"[0-9]{5,}\.[0-9]+\.part")
"""Unfinished shards, of a command that was interrupted."""


class ShardJob(NamedTuple):
    """A shard to write: its number, the number of its first record, and its records."""

    number: int
    first: int
    refs: tuple[Ref, ...]


@dataclass
class Written:
    """A shard that is complete on disk."""

    number: int
    samples: int
    bytes: int
    bad: list[BadRecord] = field(default_factory=list)


@dataclass
class ShardWriter:
    """ShardJob -> Written. A shard appears under its name once it is complete; the same job writes the same bytes.

    A format that draws at random makes its fixed choice. Texts are stored as they are before the text processor, which
    the entry that reads the shards applies to ``text_roles``.
    """

    name: str
    dataset: Any
    folder: Path

    def __getitem__(self, job: ShardJob) -> Written:
        final = self.folder / shard_name(job.number)
        part = final.with_suffix(f".{os.getpid()}.part")
        done = Written(job.number, 0, 0)
        with tarfile.open(part, "w") as tar:
            for place, ref in enumerate(job.refs):
                try:
                    members = to_members(read_record(self.dataset, ref.index, ref.raw))
                except RECORD_FAULTS as error:
                    done.bad.append(BadRecord(self.name, ref.name, str(error)))
                    continue
                for ext, data in members.items():
                    info = tarfile.TarInfo(f"{job.first + place:09d}.{ext}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                done.samples += 1
        done.bytes = part.stat().st_size
        part.replace(final)
        return done


def shard_name(number: int) -> str:
    """``00012.tar``."""
    return f"{number:05d}.tar"


def write_web_shards(
    opened: Opened, out: str | Path, *, per_shard: int = 1000, workers: int = 0, max_bad_share: float = 0.01
) -> dict[str, Any]:
    """Write a dataset to ``out/NAME/00000.tar ...`` and return its manifest, which is updated after every shard.

    Shards listed in the manifest are kept, so an interrupted command can be repeated.

    Args:
        opened: the dataset.
        out: folder of all datasets.
        per_shard: records of a shard.
        workers: processes; 0: this one.
        max_bad_share: share of records that may be left out; ``quarantine.jsonl`` next to the shards lists them.

    Raises:
        DataError: the folder holds shards of other data, or too many records cannot be used.
    """
    assert opened.source is not None
    name, folder, dataset = opened.name, Path(out) / opened.name, opened.source.dataset
    manifest = start_manifest(folder, opened, per_shard)
    known: dict[str, Any] = manifest["shards"]
    quarantine = Quarantine(folder, max_bad_share, early=0)
    quarantine.good[name] = sum(s["samples"] for s in known.values())
    quarantine.bad[name] = sum(s["bad"] for s in known.values())
    shards = enumerate(chunks(references(dataset), per_shard))
    jobs = (ShardJob(n, n * per_shard, refs) for n, refs in shards if shard_name(n) not in known)
    with progress(name, None if opened.size is None else -(-opened.size // per_shard)) as step:
        step(len(known))
        for done in data_loader(ShardWriter(name, dataset, folder), jobs, workers):
            known[shard_name(done.number)] = {"samples": done.samples, "bad": len(done.bad), "bytes": done.bytes}
            _store(folder, manifest)
            quarantine.add(name, done.samples, done.bad)
            step(1)
    manifest["samples"] = sum(s["samples"] for s in known.values())
    if not manifest["samples"]:
        raise DataError(f"dataset {name}: no record could be written", fix="check the paths under build_info")
    manifest["complete"] = True
    _store(folder, manifest)
    return manifest


def start_manifest(folder: Path, opened: Opened, per_shard: int) -> dict[str, Any]:
    """The manifest to continue, or a new one in a folder that is created if missing.

    Raises DataError: the folder belongs to other data or another shard size, or holds shards without a manifest.
    """
    fresh: dict[str, Any] = {
        "format": opened.entry.format.name,
        "build_info": json.loads(json.dumps(opened.entry.format.raw, default=str)),
        "records": opened.size,
        "per_shard": per_shard,
        "complete": False,
        "shards": {},
    }
    file = folder / MANIFEST
    if not file.is_file():
        if any(folder.glob("*.tar")):
            raise DataError(f"{folder} holds shards but no {MANIFEST}", fix="give another folder, or empty this one")
        make_folder(folder)
        _store(folder, fresh)
        return fresh
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error})", fix="delete the folder and start again") from None
    for key in ("format", "build_info", "records", "per_shard"):
        if result.get(key) != fresh[key]:
            raise DataError(
                f"{folder} holds shards of other data: {key} is {result.get(key)!r} there, {fresh[key]!r} here",
                fix="give another folder, or remove this one",
            )
    for left in folder.glob("*.part"):
        if _PART.fullmatch(left.name):
            left.unlink()
    result["shards"] = {k: v for k, v in result["shards"].items() if (folder / k).is_file()}
    return {**result, "complete": False}


def _store(folder: Path, manifest: dict[str, Any]) -> None:
    part = folder / (MANIFEST + ".part")
    part.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(folder / MANIFEST)


def entry_yaml(opened: Opened, out: str | Path) -> str:
    """The dataset's entry for a YAML file that reads the shards."""
    roles = list(text_roles(opened.entry.format))
    lines = [
        f"{opened.name}:",
        "  format: web_shards",
        f"  batch_size: {opened.entry.batch_size}",
        f"  build_info: {{storage: {json.dumps(str(Path(out) / opened.name))}, text_roles: {json.dumps(roles)}}}",
    ]
    if opened.entry.sample_ratio is not None:
        lines.insert(3, f"  sample_ratio: {opened.entry.sample_ratio:g}")
    if roles and opened.entry.text_processor:
        lines.append(f"  text_processor: {json.dumps(opened.entry.text_processor)}")
    return "\n".join(lines)
