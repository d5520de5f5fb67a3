"""What a dataset format provides, and helpers that formats share.

A format turns a raw record into a :class:`~vlm.common.types.Sample` and knows nothing of models. It is a
:class:`MapDataset` or a :class:`StreamDataset`. Everything else is optional:

* ``draw(record, rng)``, for a format that chooses at random, e.g. one of several captions: the sample of a record (an
  index, or a stream's raw record). The loader's generator follows from (seed, dataset, pass, index). ``__getitem__``
  and ``decode`` make one fixed choice, for inspection and evaluation, and for every pass of a format without ``draw``.
* ``clean``, an attribute that the loader sets to the text processor, for a format that cleans single fields.
* ``config.text_roles``: roles whose whole messages pass through the text processor.
* ``key`` of a stream's raw record: how messages name it, instead of by its position.

A record that cannot be used raises :class:`~vlm.common.errors.DataError`; the loader quarantines it, like one on which
a format fails otherwise (:data:`MALFORMED`) and one that does not fit the template (:data:`RECORD_FAULTS`).
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vlm.common.errors import DataError, PromptError, printable
from vlm.common.numbers import JSON_NUMBERS
from vlm.common.text import lines_of
from vlm.common.text import read_text as read_user_text
from vlm.common.types import Message, Part, Role, Sample, Text

Clean = Callable[[str], str]
"""A text processor."""

log = logging.getLogger(__name__)
_SURROGATE = re.compile("[\ud800-\udfff]")

MAX_TEXT = 8 << 30
"""Bytes of a text file, which is read whole; the largest published file of annotations has 1 GB."""

RECORD_FAULTS = (DataError, PromptError)
"""What a bad record raises while it is read, decoded, put into the template or tokenised; anything else ends a run."""

MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError)
"""What a format raises on a record of a shape that it does not expect: the fault of that record alone."""


@runtime_checkable
class MapDataset(Protocol):
    """Random access by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class StreamDataset(Protocol):
    """One pass after another."""

    def records(self, seed: int | None) -> Iterator[Any]:
        """One pass of raw, undecoded records, in an order that depends on ``seed`` only (None: as stored)."""
        ...

    def decode(self, raw: Any) -> Sample:
        """The sample of a raw record. Raises DataError."""
        ...


def read_record(dataset: Any, index: int, raw: Any = None, rng: random.Random | None = None) -> Sample:
    """The sample of a record of either kind of dataset.

    Args:
        dataset: map style or stream.
        index: of the record; ignored for a stream.
        raw: the record of a stream.
        rng: for the random choices of a format with ``draw``; None for the fixed choice.

    Raises:
        DataError: the record cannot be used.
    """
    stream = isinstance(dataset, StreamDataset)
    try:
        if rng is not None and hasattr(dataset, "draw"):
            sample: Sample = dataset.draw(raw if stream else index, rng)
        else:
            sample = dataset.decode(raw) if stream else dataset[index]
        for part in (part for message in sample.messages for part in message.parts if isinstance(part, Text)):
            check_text(part.text)
    except MALFORMED as error:
        log.debug("record %d", index, exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"malformed record ({reason})", fix="repair or remove the record") from error
    return replace(sample, id=printable(sample.id))


def check_text(text: str, where: str = "") -> None:
    """Raises DataError for a text with a lone surrogate, which is half a character; ``where`` begins the message."""
    if not text.isascii() and (found := _SURROGATE.search(text)):
        shown = f"\\u{ord(found.group()):04x}"
        fix = "repair or remove the record"
        raise DataError(f"{where}a text holds half a character, the lone surrogate {shown}", fix=fix)


def records_in_order(dataset: Any, limit: int | None = None, seed: int | None = None) -> Iterator[tuple[int, Any]]:
    """Index and raw record (None for map style) of the first ``limit`` records of a dataset of either kind.

    Args:
        dataset: map style or stream.
        limit: None for all.
        seed: of a random order; None: as stored.

    Raises:
        DataError: the object is neither kind.
    """
    if isinstance(dataset, StreamDataset):
        yield from islice(enumerate(dataset.records(seed)), limit)
    elif isinstance(dataset, MapDataset):
        order: Sequence[int] = range(len(dataset))
        if seed is not None:
            order = random.Random(seed).sample(order, len(order) if limit is None else min(limit, len(order)))
        yield from ((index, None) for index in islice(order, limit))
    else:
        raise not_a_dataset(dataset)


def record_count(dataset: Any) -> int | None:
    """Number of records; None for a stream, whose length is not known."""
    return None if isinstance(dataset, StreamDataset) else len(dataset)


def text_roles(dataset: Any) -> tuple[Role, ...]:
    """Roles whose text passes through the text processor: ``dataset.config.text_roles``, else none."""
    configured = hasattr(dataset, "config") and hasattr(dataset.config, "text_roles")
    return tuple(dataset.config.text_roles) if configured else ()


def not_a_dataset(value: object, name: str = "") -> DataError:
    """The error for an object that is neither kind of dataset."""
    return DataError(
        f"dataset {name}: {type(value).__name__} has neither __len__ and __getitem__ nor records and decode",
        fix="see vlm/datasets/base.py for what a format provides",
    )


def message(role: Role, *parts: str | Part) -> Message:
    """A message of texts and media."""
    return Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


def process_text(sample: Sample, fn: Clean, roles: Sequence[str]) -> Sample:
    """``sample`` with ``fn`` applied to every text of the given roles."""
    messages = (
        replace(m, parts=tuple(replace(p, text=fn(p.text)) if isinstance(p, Text) else p for p in m.parts))
        if m.role in roles
        else m
        for m in sample.messages
    )
    return replace(sample, messages=tuple(messages))


def read_text(file: Path, what: str) -> str:
    """The contents of a file in UTF-8, with or without a BOM.

    Raises:
        DataError: missing or unreadable; ``what`` is the format that reads it.
    """
    if not file.exists():
        raise DataError(f"{what}: no file {file}", fix="check the path under build_info of the dataset")
    return read_user_text(file, f"{what}: {file}", max_bytes=MAX_TEXT)


def read_json(path: str | Path, what: str) -> Any:
    """The contents of a JSON file, or of a JSON-lines file (``.jsonl``) as a list.

    Raises DataError: missing or malformed; names the file (and the line).
    """
    file = Path(path).expanduser()
    content = read_text(file, what)
    if file.suffix != ".jsonl":
        return parse_json(content, f"{what}: {file}")
    lines = enumerate(lines_of(content), start=1)
    return [parse_json(line, f"{what}: {file}:{n}") for n, line in lines if line.strip()]


def parse_json(text: str | bytes, where: str, fix: str | None = None) -> Any:
    """The value of a JSON text; NaN and infinity are missing values (None).

    Raises DataError: malformed, or nested too deeply; ``where`` is what to call it.
    """
    try:
        return json.loads(text, **JSON_NUMBERS)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error})", fix=fix) from error
    except RecursionError:
        raise DataError(f"{where} is nested too deeply", fix=fix) from None


def records_of(tree: Any, file: str, key: str | None = None) -> list[dict[str, Any]]:
    """The list of records in a JSON tree: the tree itself, or what it holds under ``key``.

    One that is not an object becomes an empty record, which lacks every field.

    Raises DataError: there is no such list of objects.
    """
    result = tree.get(key) if key is not None and isinstance(tree, dict) else tree
    usable = sum(isinstance(r, dict) for r in result) if isinstance(result, list) else 0
    if not isinstance(result, list) or (result and not usable):
        shape = "a list of objects" if key is None else f'{{"{key}": [objects]}}'
        raise DataError(f"{file}: expected {shape}, found {type(tree).__name__}")
    if usable < len(result):
        log.warning("%s: %d of %d records are not objects", file, len(result) - usable, len(result))
    return [r if isinstance(r, dict) else {} for r in result]


def by_id(records: Iterable[dict[str, Any]], *names: str) -> dict[Any, dict[str, Any]]:
    """Records by the first of the fields ``names`` that they have; those whose id is not a number or text stay out."""
    found = ((next((r[name] for name in names if name in r), None), r) for r in records)
    return {key: record for key, record in found if isinstance(key, str | int | float)}


def field(record: dict[str, Any], name: str, where: str) -> Any:
    """``record[name]``. Raises DataError naming the record and the fields it has."""
    if name not in record:
        raise DataError(f"{where}: no field {name!r} (it has {', '.join(sorted(record)) or 'none'})")
    return record[name]
