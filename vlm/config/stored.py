"""A configuration as plain data: to store with a run, and to show."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlm.config.composition import COMPOSITION, Arch
from vlm.config.run import NO_EFFECT, RunConfig
from vlm.config.tree import Tree, plain
from vlm.config.types import Config, DatasetEntry, ModelConfig, Part

DATA_SECTIONS = ("datasets", "valid_datasets", "evaluation_datasets")


def store(config: Config, tree: Tree, arch: Arch | None, data: dict[str, Any]) -> dict[str, Any]:
    """Plain data that loads back as ``config`` without any arch or corpus file."""
    stored: dict[str, Any] = {"model": store_model(config.model, tree, arch)}
    for section in DATA_SECTIONS:
        entries = getattr(config, section)
        if entries:
            stored[section] = {name: _store_entry(data[section][name], e) for name, e in entries.items()}
    stored["run"] = _run(config.run)
    if config.plugins:
        stored["plugins"] = list(config.plugins)
    return stored


def _run(run: RunConfig) -> dict[str, Any]:
    """All keys, except those without effect that nobody set."""
    default = RunConfig()
    skip = [key for key in NO_EFFECT if getattr(run, key) == getattr(default, key)]
    return plain({k: v for k, v in dataclasses.asdict(run).items() if k not in skip})


def _store_entry(written: dict[str, Any], entry: DatasetEntry) -> dict[str, Any]:
    kept = {k: v for k, v in written.items() if k not in ("help", "format", "build_info")}
    build_info = dataclasses.asdict(entry.format.config) if entry.format.config is not None else entry.format.raw
    return plain({"format": entry.format.name, "build_info": build_info, **kept})


def store_model(model: ModelConfig, tree: Tree, arch: Arch | None) -> dict[str, Any]:
    """``model:`` as stored with a run: parameters declared with their present values, the composition in full.

    References to parameters are kept, so that ``--options model.llama_model=...`` works on a stored run too.
    """
    stored: dict[str, Any] = {k: getattr(model, k) for k in ("arch", "model_type") if getattr(model, k) is not None}
    if arch is not None:
        kept = ("help", "type", "choices")
        stored["params"] = {
            name: {"default": tree.get(("model", name)), **{k: getattr(p, k) for k in kept if getattr(p, k)}}
            for name, p in arch.params.items()
        }
    written = plain({k: tree.get(("model", k)) for k in COMPOSITION if tree.get(("model", k)) is not None})
    for key in ("vision", "fusion", "llm", "template"):
        part = getattr(model, key)
        if part is not None:
            written[key] = _store_part(part, written.get(key))
    for key in ("bridge", "inserts"):
        listed = written.get(key)
        if isinstance(listed, list):
            written[key] = [_store_part(p, w) for p, w in zip(getattr(model, key), listed)]
    for key in ("image", "text"):
        written[key] = {**getattr(model, key), **(written.get(key) or {})}
    if model.video is not None:
        written["video"] = {**model.video, **(written.get("video") or {})}
    return stored | {k: written[k] for k in COMPOSITION if k in written}


def _store_part(part: Part, written: Any) -> dict[str, Any]:
    options = dataclasses.asdict(part.config) if part.config is not None else {}
    return {"name": part.name, **plain(options), **(written if isinstance(written, dict) else {})}


def effective(config: Config) -> dict[str, Any]:
    """Every value that is in force, defaults included, without interpolation: what ``vlm config show`` prints."""
    model = config.model
    shown: dict[str, Any] = {k: getattr(model, k) for k in ("arch", "model_type") if getattr(model, k) is not None}
    shown |= model.params
    for key in ("vision", "bridge", "fusion", "inserts", "llm", "template"):
        part = getattr(model, key)
        if part is not None and (part or key != "inserts"):
            shown[key] = [_store_part(p, {}) for p in part] if isinstance(part, list) else _store_part(part, {})
    shown |= {"image": model.image, **({} if model.video is None else {"video": model.video})}
    shown |= {
        "text": model.text,
        **({"generation": model.generation} if model.generation else {}),
        "train": model.train,
    }
    shown["weights"] = [dataclasses.asdict(w) for w in model.weights]
    sections = {s: _show_entries(getattr(config, s)) for s in DATA_SECTIONS if getattr(config, s)}
    tail = {"plugins": config.plugins} if config.plugins else {}
    return plain({"model": shown, **sections, "run": _run(config.run), **tail})


def _show_entries(entries: dict[str, DatasetEntry]) -> dict[str, Any]:
    skip = ("name", "format")
    return {
        name: {
            "format": e.format.name,
            "build_info": dataclasses.asdict(e.format.config) if e.format.config is not None else {},
            **{f.name: getattr(e, f.name) for f in dataclasses.fields(e) if f.name not in skip},
        }
        for name, e in entries.items()
    }
