"""Copies of configurations with other values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm.config.api import Config


def with_run(config: Config, changes: Mapping[str, Any]) -> Config:
    """``config`` with other values under ``run``, also in what is stored with the run."""
    stored = {**config.resolved, "run": {**config.resolved["run"], **changes}}
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes), resolved=stored)


def substituted(value: Any, texts: Mapping[str, str]) -> Any:
    """A copy of a configuration in which whole texts are replaced."""
    if isinstance(value, str):
        return texts.get(value, value)
    if isinstance(value, dict):
        return {k: substituted(v, texts) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(substituted(v, texts) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        changed = {k: substituted(v, texts) for k, v in fields.items()}
        return dataclasses.replace(value, **changed) if changed != fields else value
    return value
