"""The known layouts of records (``layouts.yaml``), and which of them some records have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from vlm.common.errors import DataError
from vlm.config.schema import Report, read
from vlm.config.tree import parse_file
from vlm.datasets.formats.turns import turn_objects
from vlm.datasets.media_columns import COLUMNS, is_missing, looks_like_media, media_column

Container = Literal["rows", "shards", "caption_folder"]
Record = Mapping[str, Any]

FILE = Path(__file__).with_name("layouts.yaml")
MOST_ELEMENTS, DEEPEST = 50, 4
"""Elements of a list, and levels of a record, that are looked at."""


@dataclass
class Layout:
    """A layout, see the head of ``layouts.yaml``."""

    name: str
    title: str
    format: str
    columns: dict[str, list[str]]
    each: dict[str, list[list[str]]] = field(default_factory=dict)
    says: dict[str, str] = field(default_factory=dict)  # our name -> text that the column holds in some record
    some: list[str] = field(default_factory=list)
    none: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    media: bool = False  # some record has an image or video
    fallback: bool = False
    hint: str = ""
    section: str = "datasets"
    container: Container = "rows"

    @property
    def detail(self) -> int:
        """How much it asks for: of two layouts that fit, the one that asks for more is right."""
        inner = sum(map(len, self.each.values()))
        return len(self.columns) + inner + bool(self.some) + len(self.says)

    def columns_of(self, record: Record) -> dict[str, str] | None:
        """Our names -> columns of a record, or None: it does not have this layout."""
        result = {}
        for ours, names in self.columns.items():
            fitting = (n for n in names if not is_missing(_at(record, n)) and not self._lacks(ours, _at(record, n)))
            column = next(fitting, None)
            if column is None:
                return None
            result[ours] = column
        return result

    def fits_file(self, paths: Mapping[str, int], media: bool) -> bool:
        """Whether ``some``, ``none`` and ``media`` allow a file whose records have these paths."""
        some = not self.some or any(p in paths for p in self.some)
        return some and not any(p in paths for p in self.none) and (media or not self.media)

    def _lacks(self, ours: str, value: Any) -> bool:
        """Whether a column lacks the keys of its elements, or holds what it should not."""
        if ours not in self.each:
            objects = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
            return self.container == "rows" and (objects or isinstance(value, Mapping) or looks_like_media(value))
        inner = {path.removeprefix("[].") for path in paths_of(_listed(value))}
        return not all(inner & set(alternatives) for alternatives in self.each[ours])


@dataclass
class Known:
    """The contents of ``layouts.yaml``."""

    layouts: list[Layout]
    refused: dict[str, str]
    ignored: dict[str, str]
    catalogues: list[dict[str, Any]]


@dataclass
class Fit:
    """A layout with the records that have it, and their columns (the most frequent for each of our names)."""

    layout: Layout
    fitting: list[int]
    columns: dict[str, str]

    @property
    def rank(self) -> tuple[int, int]:
        """A better fit has a larger one."""
        return len(self.fitting), self.layout.detail


@cache
def known() -> Known:
    """The layouts and catalogues."""
    report = Report()
    result: Known | None = read(Known, parse_file(FILE).data, ("layouts.yaml",), report)
    assert result is not None and not report.problems, report.problems
    return result


def fits(records: Sequence[Record], container: Container) -> list[Fit]:
    """The layouts that fit some of the records, the best first; a fallback counts where no other fits half of them."""
    paths = paths_in(records)
    for record in records:
        for kind in COLUMNS:  # a column of any known name counts as image, or as image[] if it is a list
            column = media_column(record, kind)
            paths.update([kind + "[]" * isinstance(record[column], list | tuple)] if column else [])
    media = any(media_column(r, "image") or media_column(r, "video") or media_like(r) for r in records)
    result = []
    for layout in known().layouts:
        if layout.container != container or not layout.fits_file(paths, media):
            continue
        found = {k: columns for k, r in enumerate(records) if (columns := layout.columns_of(r)) is not None}
        if found and all(
            any(text in t for k, columns in found.items() for t in _texts(_at(records[k], columns[ours])))
            for ours, text in layout.says.items()
        ):
            votes = {ours: Counter(c[ours] for c in found.values()) for ours in layout.columns}
            result.append(Fit(layout, list(found), {ours: v.most_common(1)[0][0] for ours, v in votes.items()}))
    proper = [f for f in result if not f.layout.fallback]
    if any(2 * len(f.fitting) >= len(records) for f in proper):
        result = proper
    return sorted(result, key=lambda f: f.rank, reverse=True)


def media_like(record: Record) -> list[str]:
    """The columns of a record that hold names or bytes of images or videos."""
    return [str(name) for name, value in record.items() if looks_like_media(value)]


def paths_in(records: Sequence[Record]) -> Counter[str]:
    """Path -> number of records that have a value there."""
    result = Counter[str]()
    for record in records:
        result.update(set(paths_of(record)))
    return result


def paths_of(value: Any, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """The paths in a record that have a value: ``a``, ``a.b``, ``a[]``, ``a[].b``."""
    if depth > DEEPEST:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not is_missing(item):
                path = f"{prefix}.{key}" if prefix else str(key)
                yield path
                yield from paths_of(item, path, depth + 1)
    elif isinstance(value, list | tuple):
        if any(not isinstance(item, Mapping) for item in value):
            yield f"{prefix}[]"
        for item in value[:MOST_ELEMENTS]:
            yield from paths_of(item, f"{prefix}[]", depth + 1)


def nearest(records: Sequence[Record], container: Container) -> tuple[Layout, list[str]] | None:
    """The layout that lacks the smallest share of its columns, and what is missing; None if none has a column of it."""
    paths = paths_in(records)
    best: tuple[float, Layout, list[str]] | None = None
    for layout in known().layouts:
        lacks, total = _missing(layout, paths)
        share = 1 - len(lacks) / total
        if layout.container == container and share and (best is None or share > best[0]):
            best = (share, layout, lacks)
    return None if best is None else (best[1], [*filter(None, best[2]), *_conditions(best[1], paths)])


def _missing(layout: Layout, paths: Mapping[str, int]) -> tuple[list[str], int]:
    """The columns and keys that a file lacks, and how many a layout has; keys of a column that is missing are empty."""
    result, total = [], 0
    for ours, names in layout.columns.items():
        column = next((n for n in names if n in paths), None)
        inner = layout.each.get(ours, [])
        total += 1 + len(inner)
        if column is None:
            result += [" or ".join(names), *("" for _ in inner)]
        else:
            lacking = [a for a in inner if not any(f"{column}[].{key}" in paths for key in a)]
            result += [" or ".join(f"{column}[].{key}" for key in alternatives) for alternatives in lacking]
    return result, total


def _conditions(layout: Layout, paths: Mapping[str, int]) -> list[str]:
    """What else a layout asks of a file."""
    some = [] if not layout.some or any(p in paths for p in layout.some) else [" or ".join(layout.some)]
    texts = [f"the text {text!r} in {ours}" for ours, text in layout.says.items()]
    return [*some, *(f"no {p}" for p in layout.none if p in paths), *texts]


def _listed(value: Any) -> Any:
    """A list of objects that a cell of a CSV file holds as JSON."""
    try:
        return turn_objects(value, "a cell") if isinstance(value, str) else value
    except DataError:
        return value


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list) and depth <= DEEPEST:
        inner = value.values() if isinstance(value, Mapping) else value[:MOST_ELEMENTS]
        yield from (text for item in inner for text in _texts(item, depth + 1))


def _at(record: Record, path: str) -> Any:
    """The value of a column, or of a field inside an object (``json.caption``)."""
    if path in record:
        return record[path]
    first, _, rest = path.partition(".")
    inner = record.get(first)
    return _at(inner, rest) if rest and isinstance(inner, Mapping) else None
