"""The record stored with every checkpoint: where its weights came from, and what they depend on."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm.common import VERSION

FILE = "provenance.json"
OLD_FILE = "passport.json"
"""Its name up to version 0.1."""

PACKAGES = ("torch", "transformers", "timm", "peft", "safetensors", "sentencepiece", "tokenizers", "numpy")
"""Packages whose version can change what a model computes or how its files are read."""


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
    """The record of a checkpoint folder, also under the file name of version 0.1; empty without one."""
    files = [] if checkpoint is None else [checkpoint / FILE, checkpoint / OLD_FILE]
    file = next((f for f in files if f.is_file()), None)
    return {} if file is None else dict(json.loads(file.read_text(encoding="utf-8")))
