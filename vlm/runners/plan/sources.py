"""The configuration to plan: checked like that of a run, but files of weights and data need not be there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vlm.config.load import load_config, read_source
from vlm.config.options import parse_options
from vlm.config.tree import Tree

UNSET = "???"
ABSENT = "absent"
"""Stands for the path of a file of weights that the file leaves open; nothing opens it."""


def load_for_plan(source: str, options: Sequence[str]) -> Any:
    """The ``Config`` of a file, run folder or shipped name.

    Paths that the file leaves open (``???``) are filled, since a plan reads sizes only. Of datasets that cannot be read
    the sizes of batches and the groups stay in ``resolved``.

    Raises ConfigError: the configuration does not check.
    """
    tree, _ = read_source(source, train=True)
    own = parse_options(options)
    named = {option.path for option in own}
    model = tree.data.get("model") or {}
    open_ones = [key for key, value in model.items() if value == UNSET and ("model", key) not in named]
    joined = not options or "=" in options[0]
    more = [word for key in open_ones for word in ([f"model.{key}={ABSENT}"] if joined else [f"model.{key}", ABSENT])]
    cfg = load_config(source, [*options, *more], check="none", train=True, trust=True)
    return dataclasses.replace(cfg, resolved={**cfg.resolved, "datasets": _declared(tree, own)})


def _declared(tree: Tree, options: Sequence[Any]) -> dict[str, Any]:
    """Name of each dataset -> its batch_size and group, as the file or an option says."""
    entries = {name: dict(entry or {}) for name, entry in (tree.data.get("datasets") or {}).items()}
    for option in options:
        if option.path[0] == "datasets" and len(option.path) == 3 and option.path[1] in entries:
            entries[str(option.path[1])][str(option.path[2])] = option.value
    keys = ("batch_size", "group")
    return {name: {key: entry[key] for key in keys if entry.get(key)} for name, entry in entries.items()}
