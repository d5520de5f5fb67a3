"""The record stored with every checkpoint: where its weights came from, and what they depend on."""

from __future__ import annotations

import hashlib
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.safe import read_json
from vlm.common import VERSION

FILE = "provenance.json"
OLD_FILE = "passport.json"
"""Its name up to version 0.1."""

PACKAGES = ("torch", "transformers", "timm", "peft", "safetensors", "sentencepiece", "tokenizers", "numpy")
"""Packages whose version can change what a model computes or how its files are read."""

HASHED_ROWS = 8
"""Rows of a matrix that are hashed, evenly spaced."""

HASHED_MATRICES = 4
"""Matrices of a part that are hashed, evenly spaced over the part."""


def make_provenance(
    *,
    step: int,
    config: dict[str, Any],
    metrics: dict[str, float] | None = None,
    fingerprints: dict[str, Any] | None = None,
    trained: list[str] | None = None,
    hardware: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The record, JSON-ready.

    Args:
        step: optimiser steps done.
        config: the resolved configuration as plain values.
        metrics: the latest losses.
        fingerprints: hashes of the frozen parts.
        trained: names of the parameters that the checkpoint holds.
        hardware: device and number of processes.
    """
    versions = {"python": platform.python_version(), "vlm": VERSION}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    more = {"metrics": metrics or {}, "hardware": hardware or {}, "fingerprints": fingerprints or {}}
    return {"format": 1, "step": step, "versions": versions, **more, "trained": trained or [], "config": config}


def read_provenance(checkpoint: Path | None) -> dict[str, Any]:
    """The record of a checkpoint folder, also under the file name of version 0.1; empty without one.

    Raises WeightsError: the file is damaged.
    """
    files = [] if checkpoint is None else [checkpoint / FILE, checkpoint / OLD_FILE]
    file = next((f for f in files if f.is_file()), None)
    return {} if file is None else read_json(file)


def fingerprint(model: Any) -> dict[str, dict[str, Any]]:
    """``{"llm": {"parameters", "width", "vocab", "sha256"}, "vision": {...}, ...}`` of the parts with frozen weights.

    The hash of a few rows takes milliseconds at any size, and tells apart base models, vocabularies and revisions. It
    is of float32 values, so it does not depend on the storage dtype as long as that is exact.
    """
    result: dict[str, dict[str, Any]] = {}
    parts = {"vision": model.vision, "llm": model.llm, **{f"bridge.{i}": p for i, p in enumerate(model.bridge)}}
    parts |= {f"inserts.{i}": p for i, p in enumerate(model.inserts)}
    for name, part in parts.items():
        frozen = [] if part is None else [(n, p) for n, p in part.named_parameters() if not p.requires_grad]
        if not frozen:
            continue
        result[name] = {"parameters": sum(p.numel() for _, p in frozen), "sha256": _hash(frozen)}
    if "llm" in result:
        result["llm"] |= {"width": model.llm.hidden_size, "vocab": model.llm.vocab_size}
    if "vision" in result:
        result["vision"] |= {"width": model.vision.out_dim, "image_size": model.vision.image_size}
    return result


def differences(stored: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> list[str]:
    """Descriptions of how the frozen parts of a checkpoint's run differ from the present ones."""
    lines = []
    for part, old in stored.items():
        new = found.get(part, {})
        changed = [f"{key} {old[key]} -> {new.get(key)}" for key in old if old[key] != new.get(key)]
        if changed:
            lines.append(f"{part}: {', '.join(changed)}")
    return lines


def _hash(named: list[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    matrices = [(n, p) for n, p in named if p.dim() >= 2 and p.is_floating_point()] or named
    step = max(1, len(matrices) // HASHED_MATRICES)
    for name, tensor in matrices[::step]:
        digest.update(f"{name}{list(tensor.shape)}".encode())
        rows = torch.linspace(0, len(tensor) - 1, min(HASHED_ROWS, len(tensor))).long()
        values = tensor.detach()[rows.to(tensor.device)].float().cpu()
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
