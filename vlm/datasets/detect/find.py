"""Which layout a path has, the entry that reads it, and what of it is not read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError, UserError, unknown
from vlm.config.composition import corpora
from vlm.config.run import RunConfig
from vlm.datasets.detect.entry import Entry, Read, has_option, read_head, refuse_empty
from vlm.datasets.detect.layouts import Fit, fits, known, media_like, nearest, paths_in
from vlm.datasets.detect.open import HEAD, HEAD_SHARDS, Head, open_head
from vlm.datasets.detect.roots import SEARCHED, Root, find_root
from vlm.datasets.loading.quarantine import too_many
from vlm.datasets.media_columns import COLUMNS, is_missing, media_column

MOST_FIELDS = 12
ALSO_READ = ("id", "file", "width", "height", "width_list", "height_list")
"""Columns that hold nothing to train on, and are not listed as left out."""


@dataclass
class Detected:
    """A dataset that was recognised.

    Attributes:
        title: its layout in words.
        entry: reads it; ``image_path`` is ``???`` where the images were not found.
        looked: how much of it was looked at.
        read: what the entry gave.
        root: where its images are; None: it names no files.
        facts: what else there is to know, as (label, text).
        open: what the user has to decide; empty: the entry can be used as it is.
    """

    title: str
    entry: Entry
    looked: str
    read: Read
    root: Root | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)


@dataclass
class Candidate:
    """One of several layouts that fit equally well."""

    fit: Fit
    count: int
    entry: Entry


class AmbiguousError(UserError):
    """Several layouts fit equally well, and they are read differently."""

    def __init__(self, path: Path, candidates: Sequence[Candidate]) -> None:
        lines = [
            f"  {c.fit.layout.name}: {c.fit.layout.title}\n"
            f"    in {len(c.fit.fitting)} of {c.count} records, by the columns {', '.join(c.fit.columns.values())}"
            for c in candidates
        ]
        names = " or ".join(f"--as {c.fit.layout.name}" for c in candidates)
        super().__init__(
            f"{path} fits {len(candidates)} layouts equally well:\n" + "\n".join(lines), fix=f"add {names}"
        )


def detect(path: Path, images: str = "", wanted: str = "") -> Detected:
    """Recognise a file or folder.

    Args:
        path: of a file or folder.
        images: folder of its images; empty: it is looked for near the file.
        wanted: name of the layout, if several fit; empty: the best.

    Raises:
        AmbiguousError: several layouts fit equally well.
        DataError: unreadable, of no known layout, or without any usable record.
    """
    head = open_head(path)
    fit = _chosen(path, head, wanted)
    entry = Entry(
        entry_name(path.stem if path.is_file() else path.absolute().name),
        fit.layout.format,
        _build_info(fit, head),
        fit.layout.section,
    )
    result = Detected(fit.layout.title, entry, head.looked, Read())
    result.facts.append(("because", _because(fit, head)))
    if fit.layout.hint:
        result.facts.append(("note", fit.layout.hint))
    if head.faults:
        result.facts.append(("unreadable", f"{len(head.faults)}, e.g. {head.faults[0]}"))
    unused = _unused(fit, head)
    if unused:
        result.facts.append(("not read", ", ".join(unused)))
    most = HEAD_SHARDS if head.container == "shards" else HEAD
    read = read_head(entry, most)
    result.open += _mixed(fit, head, read)
    if read.has_media and has_option(entry.format, "image_first") and "image_first" not in entry.build_info:
        in_place = Entry(entry.name, entry.format, {**entry.build_info, "image_first": False})
        if inside := read_head(in_place, most).inside:
            text = f"{inside} of {read.count} records have an image inside a text"
            result.facts.append(("places", f"{text}; the entry puts it first, image_first: false leaves it there"))
    return complete(result, read, path, images, most, head.complete)


def complete(result: Detected, read: Read, path: Path, images: str, most: int, whole: bool) -> Detected:
    """Add the samples that the entry gave, find their images, and add what follows to the entry and the facts."""
    entry = result.entry
    if read.refused and read.samples and has_option(entry.format, "refused"):
        entry.build_info["refused"] = "drop"
        result.facts.append(("left out", f"{read.refused} of {read.count} records (refused: drop)"))
        read = read_head(entry, most)
    result.read = read
    refuse_empty(read, str(path))
    if whole and not read.has_media:
        entry.data_type = "text"
    names = read.media if has_option(entry.format, "image_path") else []
    if names:
        near = path.parent if path.is_file() else path
        result.root = root = find_root(names, near, images)
        if root.folder and not root.by_name:
            entry.build_info["image_path"] = str(Path(root.folder).absolute())
        elif not root.found and not os.path.isabs(root.lacking[0]):
            entry.build_info["image_path"] = "???"
        result.open += _lacking(root, near, images)
        if entry.build_info.get("image_path", "???") != "???":
            result.read = read = read_head(entry, most)
    usable = len(read.samples)
    if usable < read.count:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in read.faults.most_common(3))
        text = f"{read.count - usable} of {read.count} records: {reasons}"
        result.facts.append(("unusable", text))
        share = RunConfig().max_bad_share
        if too_many(read.count - usable, read.count, share):
            result.open.append(f"a run stops where more than {share:.0%} of the records are unusable: remove them")
    return result


def _chosen(path: Path, head: Head, wanted: str) -> Fit:
    """The layout that fits best. Raises AmbiguousError, or DataError: none fits."""
    found = fits(head.records, head.container)
    if wanted:
        names = [layout.name for layout in known().layouts]
        if wanted not in names:
            raise UserError(f"--as {unknown('layout', wanted, names)}")
        found = [f for f in found if f.layout.name == wanted]
    if not found:
        raise _unknown(path, head, wanted)
    equal = [f for f in found if f.rank == found[0].rank]
    entries = [Entry(f.layout.name, f.layout.format, _build_info(f, head)) for f in equal]
    if any(entry.body != entries[0].body for entry in entries):
        raise AmbiguousError(path, [Candidate(f, len(head.records), e) for f, e in zip(equal, entries, strict=True)])
    return found[0]


def _unknown(path: Path, head: Head, wanted: str) -> DataError:
    paths = paths_in(head.records)
    shown = sorted(paths, key=lambda p: (p.count("."), -paths[p], p))[:MOST_FIELDS]
    listed = ", ".join(shown) or "none"
    near = nearest(head.records, head.container)
    text = f"{path}: not a known layout; its fields are {listed}"
    if wanted:
        text = f"{path}: no record has the layout {wanted}; the fields are {listed}"
    if near is not None:
        layout, lacks = near
        missing = "; ".join(lacks) or "values of the right kind in its columns"
        text += f"\n  nearest: {layout.name} ({layout.title}); missing: {missing}"
    fix = (
        "name the columns yourself: format: table with build_info.fields, user and assistant (docs/guides/own_data.md)"
    )
    return DataError(text, fix=fix)


def entry_name(text: str) -> str:
    """A name for an entry; never that of a shipped corpus, whose options it would inherit."""
    name = re.sub(r"\W+", "_", text).strip("_").lower() or "mine"
    return f"my_{name}" if name in corpora() or name[0].isdigit() else name


def _build_info(fit: Fit, head: Head) -> dict[str, Any]:
    """The options that read a head of this layout, without the folder of the images."""
    layout, paths = fit.layout, paths_in(head.records)
    location = str(Path(head.location).absolute())
    if not has_option(layout.format, "ann_path"):
        result: dict[str, Any] = {"storage": location}
    else:
        result = {"ann_path": location} | ({"file_type": head.file_type} if head.file_type else {})
    fields = {ours: column for ours, column in fit.columns.items() if ours != column}
    if has_option(layout.format, "fields"):
        fields |= _media_fields(head.records, fit)
        result |= {"fields": fields} if fields else {}
    elif layout.format == "transcript":
        result |= {"field": fit.columns["field"]}
    result |= layout.options
    for path, options in layout.found.items():
        result |= options if path in paths else {}
    columns = [c for c in known().refused if c in paths]
    if columns and has_option(layout.format, "refuse"):
        result["refuse"] = columns
    return result


def _media_fields(records: Sequence[Mapping[str, Any]], fit: Fit) -> dict[str, str]:
    """``image: COLUMN`` where only a column of another name holds images."""
    if any(media_column(r, "image") or media_column(r, "video") for r in records):
        return {}
    found = Counter(c for r in records for c in media_like(r) if c not in fit.columns.values() and c != "file_name")
    column, count = next(iter(found.most_common(1)), ("", 0))
    return {"image": column} if 2 * count >= len(records) else {}


def _because(fit: Fit, head: Head) -> str:
    layout, inner = fit.layout, []
    for ours, column in fit.columns.items():
        keys = [
            next((k for k in alternatives if _has(head, f"{column}[].{k}")), "")
            for alternatives in layout.each.get(ours, [])
        ]
        inner.append(f"{column}[].{{{', '.join(filter(None, keys))}}}" if any(keys) else column)
    paths = paths_in(head.records)
    inner += [p for p in layout.some if p in paths][:2]
    return f"{len(fit.fitting)} of {len(head.records)} records have {', '.join(inner)}"


def _has(head: Head, path: str) -> bool:
    return any(path in paths_in([record]) for record in head.records[:20])


def _mixed(fit: Fit, head: Head, read: Read) -> list[str]:
    """What the records of another layout are that the entry cannot read, if there are any."""
    fitting = set(fit.fitting)
    rest = [r for k, r in enumerate(head.records) if k not in fitting and k in _failed(head, read)]
    if not rest:
        return []
    body = _build_info(fit, head)
    others = [f for f in fits(rest, head.container) if not f.layout.fallback and _build_info(f, head) != body]
    if not others:
        return []
    other = others[0].layout
    return [
        f"{len(rest)} of {len(head.records)} records have another layout, {other.name} ({other.title}); "
        "the entry cannot read them. Split the file into two, or remove them"
    ]


def _failed(head: Head, read: Read) -> set[int]:
    return {k for k, position in enumerate(head.positions) if position in read.failed}


def _unused(fit: Fit, head: Head) -> list[str]:
    """The columns that the entry does not read, with what is known about them."""
    if head.container != "rows":
        return []
    media = {c for kind in COLUMNS for r in head.records for c in [media_column(r, kind)] if c}
    options = [str(v) for v in _flat(_build_info(fit, head))]
    used = {*fit.columns.values(), *media, *ALSO_READ}
    used |= {name for option in options for name in re.findall(r"\w+", option)}
    columns = dict.fromkeys(str(c) for r in head.records for c, v in r.items() if not is_missing(v))
    about = known().ignored
    result = [f"{c} ({about[c]})" if c in about else c for c in columns if c not in used]
    refused = [f"{c} (refused: {known().refused[c]})" for c in columns if c in known().refused]
    return [*refused, *result]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [x for item in value.values() for x in _flat(item)]
    return [x for item in value for x in _flat(item)] if isinstance(value, list) else [value]


def _lacking(root: Root, near: Path, given: str) -> list[str]:
    """What to do about images that were not found."""
    if not root.lacking:
        return []
    if root.by_name:
        return [
            f"no image is where the records say ({root.lacking[0]}), but files of these names are in {root.folder}: "
            f'set build_info.image_path: {root.folder} and image_pattern: "{{image.name}}"'
        ]
    first = f"the first is {root.lacking[0]}"
    if root.found:
        return [f"{len(root.lacking)} of {root.count} images are missing ({root.lacking_by_folder}); {first}"]
    where = given or f"{near}, {SEARCHED}"
    return [f"none of {root.count} images was found in {where}; {first}. Name their folder with --images DIR"]
