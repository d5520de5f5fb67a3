"""Keys that had another name in an earlier version, read under both with one warning, or in published files."""

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

PUBLISHED: dict[tuple[str, ...], str] = {("datasets", "*", "batch_size_train"): "batch_size"}
"""Other spellings in published files, which stay."""
MOVED: dict[tuple[str, ...], str] = {
    ("datasets", "*", "build_info", "annotations", "train", "storage"): "ann_path",
    ("datasets", "*", "build_info", "images", "storage"): "image_path",
}
"""Published paths below a dataset's build_info -> the key of build_info that has the value here."""
INVERSE = ("invrefcoco", "invrefcoco+", "invrefcocog")
"""Published values of ``build_info.dataset`` for the other direction, which ``direction`` says here."""


def current(path: Path) -> Path:
    """``path`` with its last key under today's name; says so if it had another."""
    for old, new in (RENAMED | PUBLISHED).items():
        if _matches(path, old):
            if old in PUBLISHED:
                return (*path[:-1], new)
            log.warning("%s is called %s now; the old name will be refused from version 0.4 on", dotted(path), new)
            return (*path[:-1], new)
    return path


def option_path(path: Path) -> Path:
    """Today's path of an option: :func:`current`, and what :func:`flatten_build_info` does in a file."""
    return next(((*path[:3], new) for old, new in MOVED.items() if _matches(path, old)), current(path))


def _matches(path: Path, pattern: tuple[str, ...]) -> bool:
    return len(path) == len(pattern) and all(p in ("*", k) for p, k in zip(pattern, path))


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


def flatten_build_info(tree: Tree) -> dict[str, str]:
    """Give the nested paths of published dataset files (``MOVED``) their keys here; what is under the key wins.

    Returns:
        Dotted paths beside them that change nothing (addresses, checksums, other splits), each with the reason.
    """
    left_out: dict[str, str] = {}
    entries = tree.get(("datasets",))
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        info = entry.get("build_info") if isinstance(entry, dict) else None
        if not isinstance(info, dict):
            continue
        for old, new in MOVED.items():
            path: Path = ("datasets", name, *old[2:])
            value, head, around = tree.get(path), path[:4], tree.get(path[:-1])
            if value is None:
                continue
            if new not in info:
                tree.put((*path[:3], new), value, tree.origins.get(path, ""))
            others = {*around, *tree.get(head)} - set(old)
            left_out |= {dotted((*head, key)): f"the files of training are {new}" for key in others}
            del info[old[3]]
        if info.get("dataset") in INVERSE:
            info["dataset"] = info["dataset"].removeprefix("inv")
    return left_out
