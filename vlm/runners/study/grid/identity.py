"""What makes two runs the same one: a hash of everything that decides what they compute, and of nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.common.paths import SYSTEMS
from vlm.config.api import Config, DatasetEntry, Part, RunConfig
from vlm.config.parts import PATH_OPTIONS
from vlm.config.run import NO_EFFECT
from vlm.config.types import KINDS
from vlm.runners.evaluate.digests import digest_of, file_digest

DIGITS = 12
MACHINE = frozenset({
    "output_dir", "job_name", "overwrite", "resume", "resume_ckpt_path", "device", "num_workers", "stall_seconds",
    "parallel", "profile", "log_freq", "trackers", "wandb_log", "wandb_project", "report", "report_samples",
    "save_freq", "keep_last", "keep_every", "name", "save_path", "serving", "max_new_tokens", "batch_size_eval",
    "benchmark",
})  # fmt: skip
"""Keys of ``run`` that say where, how fast or how visibly a run computes, and not what."""
PATH_KEYS = frozenset({*PATH_OPTIONS, "tokenizer", "prompt_path", "dir"})
LISTED = (".json", ".yaml", ".txt", ".model", ".safetensors", ".bin", ".pth", ".pt", ".gguf", ".jsonl", ".parquet")
MOST_FILES = 10_000
"""Entries of a folder that are looked at."""


def hash_of(content: Any) -> str:
    """12 hexadecimal digits of plain data."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def identity(config: Config, length: Any, processes: int, before: Mapping[str, str]) -> dict[str, Any]:
    """What decides a run, as plain data.

    Values that are defaults are left out, so that a later version with more options gives the same hash, and so does
    another spelling of the same composition. Files count by content and folders by their files, not by place.

    Args:
        config: checked.
        length: what the steps are derived from; None: the configuration's own length counts.
        processes: of the run; they count where they decide how many samples a step has.
        before: path of an earlier run -> its hash.
    """
    run, model = config.run, config.model
    skip = {*MACHINE, *NO_EFFECT, *(("max_steps", "max_epoch") if length is not None else ())}
    parts = {key: getattr(model, key) for key in KINDS}
    asked = {entry.dataset for entry in run.eval}
    evaluations = {n: e for n, e in config.evaluation_datasets.items() if n in asked}
    files = {n: dataclasses.asdict(e) for n, e in config.evaluation_files.items() if n in asked}
    content = {
        "model": {
            key: [_part(p) for p in part] if isinstance(part, list) else _part(part) for key, part in parts.items()
        },
        "train": list(model.train.items()),
        "weights": [dataclasses.asdict(w) for w in model.weights],
        "datasets": {name: _entry(e) for name, e in config.datasets.items()},
        "valid_datasets": {name: _entry(e) for name, e in config.valid_datasets.items()},
        "evaluations": {**{name: _entry(e) for name, e in evaluations.items()}, **files},
        "run": {k: v for k, v in _differing(run, RunConfig()).items() if k not in skip},
        "plugins": config.plugins,
        "length": length,
        "processes": 1 if run.global_batch else processes,
    }
    if run.lr_scale:
        content["run"]["lr_scale"] = list(run.lr_scale.items())  # their order counts
    cache = run.feature_cache
    if cache is not None:
        content["run"]["feature_cache"] = {"dtype": cache.dtype}
    return {key: _portable(value, key, before) for key, value in content.items() if value not in (None, {}, [])}


def _part(part: Part | None) -> Any:
    if part is None:
        return None
    options = part.options
    if part.config is not None:
        options = _differing(part.config, None)
    return {"name": part.name, **options}


def _entry(entry: DatasetEntry) -> dict[str, Any]:
    kept = ("batch_size", "sample_ratio", "group", "text_processor", "vis_processor")
    return {"format": _part(entry.format), **{k: getattr(entry, k) for k in kept}}


def _differing(options: Any, default: Any) -> dict[str, Any]:
    """Fields of a dataclass instance that are not the defaults of its class."""
    found = {}
    for spec in dataclasses.fields(options):
        value = getattr(options, spec.name)
        if default is not None:
            usual = getattr(default, spec.name)
        elif spec.default is not dataclasses.MISSING:
            usual = spec.default
        elif spec.default_factory is not dataclasses.MISSING:
            usual = spec.default_factory()
        else:
            usual = dataclasses.MISSING
        if value != usual:
            found[spec.name] = value
    return found


def _portable(value: Any, key: str, before: Mapping[str, str]) -> Any:
    """Plain data in which earlier runs, files and folders stand for what is in them."""
    if isinstance(value, Mapping):
        return {str(k): _portable(v, str(k), before) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(v, key, before) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _portable(dataclasses.asdict(value), key, before)
    if isinstance(value, str) and (key in PATH_KEYS or os.sep in value):
        return before[value] if value in before else token(value)
    return value


def token(text: str) -> str:
    """A path as the content that it leads to; a text that leads nowhere as it is.

    Shipped files count by name, since a version may store them in another way.
    """
    if not text or "\n" in text or len(text) > 4096 or "://" in text or "\0" in text:
        return text
    path = Path(text).expanduser()
    if path.is_absolute() and path.is_relative_to(SYSTEMS.parent):
        return f"shipped:{path.relative_to(SYSTEMS.parent).as_posix()}"
    try:
        if path.is_file():
            return f"file:{file_digest(path)}"
        return f"folder:{_folder(path)}" if path.is_dir() else text
    except OSError:
        return text


def _folder(path: Path) -> str:
    """The name of a folder with the names and sizes of what looks like weights, text or tables in it.

    Folders of images count by their name alone: what of them is used, the annotations say.
    """
    found = []
    with os.scandir(path) as entries:
        for number, entry in enumerate(entries):
            if number >= MOST_FILES:
                return path.name
            if entry.name.endswith(LISTED) and entry.is_file():
                found.append((entry.name, entry.stat().st_size))
    small = [path / name for name, size in sorted(found) if name.endswith(".json") and size < 1 << 20]
    return hash_of([path.name if not found else "", sorted(found), digest_of(small)])
