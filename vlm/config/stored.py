"""A configuration as plain data: to store with a run, and to show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm.config.composition import Arch
from vlm.config.run import NO_EFFECT, RunConfig
from vlm.config.tree import Tree, plain
from vlm.config.types import COMPOSITION, KINDS, UNNAMED, Config, DatasetEntry, ModelConfig, Part

DATA_SECTIONS = ("datasets", "valid_datasets", "evaluation_datasets")


def store(config: Config, tree: Tree, arch: Arch | None, data: dict[str, Any]) -> dict[str, Any]:
    """Plain data that loads back as ``config`` without any arch or corpus file."""
    stored: dict[str, Any] = {"model": store_model(config.model, tree, arch)}
    for section in DATA_SECTIONS:
        entries = getattr(config, section)
        if entries:
            stored[section] = {name: _store_entry(data[section][name], e) for name, e in entries.items()}
    if config.evaluation_files:
        stored["evaluation_datasets"] = stored.get("evaluation_datasets", {}) | _files(config)
    stored["run"] = _run(config.run)
    if config.plugins:
        stored["plugins"] = list(config.plugins)
    return stored


def _run(run: RunConfig) -> dict[str, Any]:
    """All keys, except those without effect that nobody set."""
    default = RunConfig()
    skip = [key for key in NO_EFFECT if getattr(run, key) == getattr(default, key)]
    return plain({k: v for k, v in dataclasses.asdict(run).items() if k not in skip})


def _files(config: Config) -> dict[str, Any]:
    files = {name: dataclasses.asdict(found) for name, found in config.evaluation_files.items()}
    return {
        name: {k: v for k, v in found.items() if k != "options"} | found["options"] for name, found in files.items()
    }


def _store_entry(written: dict[str, Any], entry: DatasetEntry) -> dict[str, Any]:
    kept = {k: v for k, v in written.items() if k not in ("help", "format", "build_info")}
    return plain({"format": entry.format.name, "build_info": entry.format.options, **kept})


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
    for key in [k for k in KINDS if k != "generation"]:  # of that, what was written
        part = getattr(model, key)
        own = written.get(key)
        if isinstance(part, list) and isinstance(own, list):
            written[key] = [_store_part(key, p) | (w if isinstance(w, dict) else {}) for p, w in zip(part, own)]
        elif isinstance(part, Part):
            written[key] = _store_part(key, part) | (own if isinstance(own, dict) else {})
    return stored | {k: written[k] for k in COMPOSITION if k in written}


def _store_part(key: str, part: Part) -> dict[str, Any]:
    """Name (where it says anything) and all options."""
    name = {} if UNNAMED.get(key) == part.name else {"name": part.name}
    return name | plain(part.options)


def effective(config: Config) -> dict[str, Any]:
    """Every value that is in force, defaults included, without interpolation: what ``vlm config show`` prints."""
    model = config.model
    shown: dict[str, Any] = {k: getattr(model, k) for k in ("arch", "model_type") if getattr(model, k) is not None}
    shown |= model.params
    for key in KINDS:
        part = getattr(model, key)
        if isinstance(part, list):
            shown |= {key: [_store_part(key, p) for p in part]} if part or key == "bridge" else {}
        elif part is not None:
            options = _store_part(key, part)
            shown[key] = {k: v for k, v in options.items() if k in part.given} if key == "generation" else options
    if not shown["generation"]:
        del shown["generation"]
    shown["train"] = model.train
    shown["weights"] = [dataclasses.asdict(w) for w in model.weights]
    sections = {s: {n: _show_entry(e) for n, e in getattr(config, s).items()} for s in DATA_SECTIONS}
    sections["evaluation_datasets"] |= _files(config)
    sections = {s: entries for s, entries in sections.items() if entries}
    tail = {"plugins": config.plugins} if config.plugins else {}
    return plain({"model": shown, **sections, "run": _run(config.run), **tail})


def _show_entry(entry: DatasetEntry) -> dict[str, Any]:
    options = {k: v for k, v in vars(entry).items() if k not in ("name", "format")}
    return {"format": entry.format.name, "build_info": entry.format.options, **options}


def flat(data: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> value of every leaf (an empty mapping or list is a leaf)."""
    if isinstance(data, Mapping) and data:
        items = [(str(k), v) for k, v in data.items()]
    elif isinstance(data, list) and data and any(isinstance(v, (dict, list)) for v in data):
        items = [(str(i), v) for i, v in enumerate(data)]
    else:
        return {path: data}
    return {p: v for k, child in items for p, v in flat(child, f"{path}.{k}" if path else k).items()}
