"""Which records become samples: ``where``, ``explode``, ``one_per``, ``subset``; whatever is left out is counted."""

from __future__ import annotations

import fnmatch
import logging
import random
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vlm.common.errors import DataError
from vlm.datasets.formats.table.read import Record, RecordFile

log = logging.getLogger(__name__)


class Item(NamedTuple):
    """A sample: file, record in it, and element of the record's parallel lists (None: the whole record)."""

    file: int
    row: int
    element: int | None = None


class Items(Sequence[Item]):
    """Items as numbers in one buffer shared by forked workers (see :mod:`vlm.datasets.formats.table.record_buffer`)."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._numbers = array("q", (-1 if n is None else n for item in items for n in item))

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        file, row, element = self._numbers[3 * index : 3 * index + 3]
        return Item(file, row, None if element < 0 else element)


def matches(record: Record, where: Mapping[str, Any]) -> bool:
    """Whether every field has the value (or one of the values; a text may hold ``*``) that ``where`` asks for."""
    return all(any(_equal(record.get(k), v) for v in (w if isinstance(w, list) else [w])) for k, w in where.items())


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) and "*" in wanted:
        return isinstance(found, str) and fnmatch.fnmatchcase(found, wanted)
    return bool(found == wanted or (found is not None and str(found) == str(wanted)))


def is_readable(files: Sequence[RecordFile], item: Item) -> bool:
    """Whether the record of an item could be read; an unreadable one raises its DataError on access."""
    return item.row not in files[item.file].records.faults


def _usable(rows: RecordFile) -> Iterator[Record]:
    return (rows.records[k] for k in range(len(rows.records)) if k not in rows.records.faults)


def kept(files: Sequence[RecordFile], where: Mapping[str, Any]) -> list[Item]:
    """The records that ``where`` selects; unreadable ones stay, for the quarantine. Raises DataError if none is."""
    everything = [Item(f, r) for f, rows in enumerate(files) for r in range(len(rows.records))]
    if not where:
        return everything
    items = [i for i in everything if not is_readable(files, i) or matches(files[i.file].records[i.row], where)]
    declared = ", ".join(f"{k}={v}" for k, v in where.items())
    log.info("%s: %d of %d records have %s", files[0].name, len(items), len(everything), declared)
    if not any(is_readable(files, i) for i in items):
        firsts = [next(_usable(f)) for f in files]
        result = {k: sorted({str(r.get(k)) for r in firsts}) for k in where}
        raise DataError(
            f"table: {files[0].name}: none of {len(everything)} records has {declared} (the first has {result})",
            fix="correct build_info.where",
        )
    return items


def length(record: Record, fields: Sequence[str], where: str) -> int:
    """Length of the parallel lists of a record. Raises DataError: not lists, or of different lengths."""
    sizes = {f: len(record[f]) if isinstance(record.get(f), list) else None for f in fields}
    if None in sizes.values() or len(set(sizes.values())) > 1:
        raise DataError(f"{where}: expected lists of equal length, found {sizes}", fix="correct build_info.explode")
    return next(size for size in sizes.values() if size is not None)


def element_of(record: Record, fields: Sequence[str], element: int) -> Record:
    """The record with one element of its parallel lists; an element that is an object adds its fields."""
    values = {f: record[f][element] for f in fields}
    nested = {k: v for value in values.values() if isinstance(value, dict) for k, v in value.items()}
    return {**record, **values, **nested}


def exploded(files: Sequence[RecordFile], items: Sequence[Item], fields: Sequence[str]) -> list[Item]:
    """One item per element of the parallel lists; an unusable record stays one item, for the quarantine.

    Raises DataError: no record can be used.
    """
    result: list[Item] = []
    faults: list[DataError] = []
    for item in items:
        rows = files[item.file]
        try:
            count = length(rows.records[item.row], fields, rows.where(item.row))
            result += [item._replace(element=k) for k in range(count)]
        except DataError as error:
            result.append(item)
            faults.append(error)
    if faults and len(faults) == len(items):
        raise faults[0]
    return result


def nested(rows: RecordFile, fields: Sequence[str]) -> set[str]:
    """The fields that :func:`element_of` adds."""
    lists = (r.get(f) for r in _usable(rows) for f in fields) if fields else ()
    return {k for result in lists if isinstance(result, list) for e in result if isinstance(e, dict) for k in e}


def one_per(items: Sequence[Item], key: Callable[[Item], str], seed: int) -> list[Item]:
    """One random item for each value of ``key``, in order of first occurrence."""
    groups = defaultdict[str, list[Item]](list)
    for item in items:
        groups[key(item)].append(item)
    rng = random.Random(seed)
    return [rng.choice(group) for group in groups.values()]


def subset(items: Sequence[Item], size: int, seed: int) -> list[Item]:
    """``size`` random items (or all, if there are fewer), in their original order."""
    chosen = sorted(random.Random(seed).sample(range(len(items)), size)) if 0 < size < len(items) else range(len(items))
    return [items[k] for k in chosen]
