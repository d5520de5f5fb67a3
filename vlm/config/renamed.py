"""Keys that had another name in an earlier version: read under both, with one warning."""

from __future__ import annotations

import logging
from typing import Any

from vlm.config.schema import Path, dotted
from vlm.config.tree import Tree

log = logging.getLogger(__name__)

RENAMED: dict[tuple[str, ...], str] = {
    ("model", "fusion", "mark_id"): "image_token_id",
    ("model", "fusion", "evenly_at_missing"): "uniform_when_missing",
    ("model", "image", "odd_margin"): "crop_rounding",
    ("model", "video", "when_short"): "on_short_video",
    ("model", "template", "cut_at"): "truncate_at",
    ("model", "template", "keep_after"): "strip_before",
    ("model", "template", "bare"): "caption_prompt",
    ("*", "*", "build_info", "join_pictures"): "join_images",
    ("run", "loss_mean"): "loss_reduction",
}
"""Path before version 0.2 -> the key's name today. The old names go in version 0.4."""


def current(path: Path) -> Path:
    """``path`` with its last key under today's name; says so if it had another."""
    for old, new in RENAMED.items():
        if len(old) == len(path) and all(o in ("*", k) for o, k in zip(old, path)):
            log.warning("%s is called %s now; the old name will be refused from version 0.4 on", dotted(path), new)
            return (*path[:-1], new)
    return path


def rename_keys(tree: Tree, at: Path = ()) -> None:
    """Give every key of ``tree`` (the part of a configuration below ``at``) today's name; the value under it wins."""

    def visit(node: Any, path: Path) -> None:
        for key in list(node):
            new = current((*at, *path, key))[-1]
            if new != key:
                if new not in node:
                    tree.put((*path, new), node[key], tree.origins.get((*path, key), ""))
                del node[key]
            elif isinstance(node[key], dict):
                visit(node[key], (*path, key))

    visit(tree.data, ())
