"""The entry of a configuration that reads a dataset, and the samples that it gives."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any

from vlm.common.errors import DataError, UserError
from vlm.common.registry import resolve
from vlm.common.types import Message, Sample, Text
from vlm.config.parts import read_dataset
from vlm.config.schema import Report
from vlm.config.tree import to_yaml
from vlm.datasets.base import RECORD_FAULTS, StreamDataset, read_record, records_in_order
from vlm.datasets.formats.turns import RefusedError


@dataclass
class Entry:
    """An entry of a dataset section of a configuration."""

    name: str
    format: str
    build_info: dict[str, Any]
    section: str = "datasets"
    data_type: str = ""

    @property
    def body(self) -> dict[str, Any]:
        """What is written under its name."""
        kind = {"data_type": self.data_type} if self.data_type else {}
        return {"format": self.format, **kind, "build_info": self.build_info}


@dataclass
class Read:
    """What the first records of a dataset gave.

    Attributes:
        samples: the usable ones.
        count: of all records that were tried.
        faults: reason -> number of records.
        fixes: reason -> what to do about it.
        refused: records with something that training cannot represent.
        failed: positions of the records that cannot be used.
    """

    samples: list[Sample] = field(default_factory=list)
    count: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    fixes: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    failed: set[int] = field(default_factory=set)

    @property
    def media(self) -> list[str]:
        """The files that the samples name, each once."""
        sources = (m.source for s in self.samples for message in s.messages for m in message.media)
        return list(dict.fromkeys(s for s in sources if isinstance(s, str)))

    @property
    def inside(self) -> int:
        """How many samples have an image or video between words of a message."""
        return sum(any(_is_inside(message) for message in s.messages) for s in self.samples)

    @property
    def has_media(self) -> bool:
        """Whether any sample has an image or video."""
        return any(message.media for s in self.samples for message in s.messages)


def _is_inside(message: Message) -> bool:
    words = [isinstance(p, Text) and bool(p.text.strip()) for p in message.parts]
    return any(not isinstance(p, Text) and any(words[:k]) and any(words[k:]) for k, p in enumerate(message.parts))


def yaml_of(entries: list[Entry]) -> str:
    """The entries as sections of a configuration."""
    sections: dict[str, dict[str, Any]] = {}
    for entry in entries:
        sections.setdefault(entry.section, {})[entry.name] = entry.body
    return to_yaml(sections)


def has_option(format_name: str, option: str) -> bool:
    """Whether a dataset format has an option in its ``build_info``."""
    return option in {f.name for f in fields(resolve("dataset", format_name).Config)}


def read_head(entry: Entry, most: int) -> Read:
    """The samples of the first ``most`` records, read as a run would read them.

    Raises UserError: the entry cannot be opened.
    """
    first = {"first": most} if has_option(entry.format, "first") else {}
    result = Read()
    for index, raw, dataset in _records({**entry.body, "build_info": {**entry.build_info, **first}}, entry, most):
        result.count += 1
        try:
            result.samples.append(read_record(dataset, index, raw))
        except RECORD_FAULTS as error:
            result.failed.add(index)
            result.refused += isinstance(error, RefusedError)
            reason = reason_of(error)
            result.faults[reason] += 1
            result.fixes.setdefault(reason, str(error).partition("\n  fix: ")[2])
    return result


def _records(body: Mapping[str, Any], entry: Entry, most: int) -> Iterator[tuple[int, Any, Any]]:
    report = Report()
    read = read_dataset(entry.name, dict(body), (entry.section, entry.name), None, report, "none")
    if read is None or report.problems:
        raise UserError("\n".join(f"{p.path}: {p.message}" for p in report.problems) or f"{entry.name} is incomplete")
    dataset = resolve("dataset", read.format.name)(read.format.config)
    found = records_in_order(dataset, most)
    for index, raw in islice(found, most) if isinstance(dataset, StreamDataset) else found:
        yield index, raw, dataset


def reason_of(error: UserError) -> str:
    """Why a record cannot be used, without what names the record and the fix, so that equal reasons are equal."""
    text = str(error).partition("\n")[0]
    head, colon, rest = text.partition(": ")
    named = colon and (os.sep in head or head.startswith("table"))
    text = rest if named else text
    return text.partition(": ")[2] if text.startswith("record ") and ": " in text else text


def refuse_empty(read: Read, what: str) -> None:
    """Raises DataError: there is not one usable sample."""
    if not read.samples:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in read.faults.most_common(3))
        fix = next((read.fixes[reason] for reason, _ in read.faults.most_common(1)), None)
        raise DataError(f"{what}: none of {read.count} records can be used: {reasons}", fix=fix or None)
