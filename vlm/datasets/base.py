"""What a dataset format is, and helpers that formats share.

A format turns a raw record into a :class:`~vlm.common.types.Sample` and knows nothing of models. Two kinds:

* map style: ``__len__`` and ``__getitem__(i) -> Sample``;
* stream: ``records(seed) -> iterator`` over one pass of raw, undecoded records (order from the seed,
  as stored when ``None``) and ``decode(raw) -> Sample``.

A format that chooses at random (one of several captions, a template) also has ``draw(index, rng) -> Sample``
(map style) or ``draw(raw, rng) -> Sample`` (stream). The loader calls it with a generator that follows from
(seed, dataset, pass, index); ``__getitem__`` and ``decode`` make one fixed choice, for looking and evaluation.

A record that cannot be used raises :class:`~vlm.common.errors.DataError`; the loader puts it in quarantine.
A format may name in ``Config.text_roles`` the roles whose text passes the corpus's text processor. One that
cleans single fields before it puts them into a text has an attribute ``clean`` instead, which the loader sets.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vlm.common.errors import DataError
from vlm.common.types import Message, Part, Role, Sample, Text


@runtime_checkable
class MapDataset(Protocol):
    """Random access by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class StreamDataset(Protocol):
    """One pass after another."""

    def records(self, seed: int | None) -> Iterator[Any]:
        """One pass of raw records; the same seed gives the same order."""
        ...

    def decode(self, raw: Any) -> Sample:
        """The sample of a raw record. Raises DataError."""
        ...


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


def read_record(dataset: Any, index: int, raw: Any) -> Sample:
    """The sample of what :func:`records_in_order` yields. Raises DataError: the record cannot be used."""
    return dataset.decode(raw) if isinstance(dataset, StreamDataset) else dataset[index]


def not_a_dataset(value: object, name: str = "") -> DataError:
    """The error for an object that is neither kind of dataset."""
    return DataError(
        f"dataset {name}: {type(value).__name__} has neither __len__ and __getitem__ nor records and decode",
        fix="see vlm/datasets/base.py for what a format provides",
    )


def message(role: Role, *parts: str | Part) -> Message:
    """A message of texts and media."""
    return Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


def process_text(sample: Sample, fn: Callable[[str], str], roles: Sequence[str]) -> Sample:
    """``sample`` with ``fn`` applied to every text of the given roles."""

    def one(m: Message) -> Message:
        if m.role not in roles:
            return m
        return Message(m.role, tuple(replace(p, text=fn(p.text)) if isinstance(p, Text) else p for p in m.parts))

    return replace(sample, messages=tuple(one(m) for m in sample.messages))


def read_json(path: str | Path, what: str) -> Any:
    """The contents of a JSON file, or of a JSON-lines file (``.jsonl``) as a list.

    Raises:
        DataError: missing or malformed; names the file (and the line).
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{what}: no file {file}", fix="check the path under build_info of the dataset") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{what}: {file} cannot be read ({error})") from error
    if file.suffix != ".jsonl":
        return _loads(text, f"{what}: {file}")
    lines = text.splitlines()
    return [_loads(line, f"{what}: {file}:{n}") for n, line in enumerate(lines, start=1) if line.strip()]


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error})") from error


def records_of(tree: Any, file: str, key: str | None = None) -> list[dict[str, Any]]:
    """The list of records in a JSON tree: the tree itself, or what it holds under ``key``.

    Raises:
        DataError: there is no such list of objects.
    """
    result = tree.get(key) if key is not None and isinstance(tree, dict) else tree
    if not isinstance(result, list) or not all(isinstance(r, dict) for r in result):
        shape = "a list of objects" if key is None else f'{{"{key}": [objects]}}'
        raise DataError(f"{file}: expected {shape}, found {type(tree).__name__}")
    return result


def field(record: dict[str, Any], name: str, where: str) -> Any:
    """``record[name]``. Raises DataError naming the record and the fields it has."""
    if name not in record:
        raise DataError(f"{where}: no field {name!r} (it has {', '.join(sorted(record)) or 'none'})")
    return record[name]
