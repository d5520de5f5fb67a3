"""``read_cards``: what evaluation cards in a folder say, however they were made; ``board``: models by benchmarks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vlm.common.errors import DataError
from vlm.common.numbers import JSON_NUMBERS
from vlm.common.text import read_text
from vlm.pages.leaderboard import Board, Cell, Column, Row
from vlm.runners.evaluate.results.stored_run import CARD
from vlm.tasks.answers import key_of
from vlm.tasks.benchmarks.base import Score

MOST_CARDS = 2000
MOST_FOLDERS = 20_000
MOST_BYTES = 1 << 25
MOST_DATASETS = 200
"""Datasets of one card that are read."""
LONGEST = 120
"""Characters of a name that are shown."""
LARGEST = 1e15
"""The largest number that is taken for a score."""
SHORT = 12
PLAIN = {"choose": "generate", "empty": "error", "answers": "one run, as the settings say"}
"""Options of a benchmark that every evaluation has, with what they usually are."""
OPTIONS = {
    "shots": "few-shot examples", "choose": "chosen by", "empty": "an empty answer is", "judge": "judge",
    "answers": "", "longest answer in tokens": "longest answer",
}  # fmt: skip
"""Facts about a dataset that change its numbers."""
Parsed = Mapping[str, Any]


@dataclass(frozen=True)
class CardFile:
    """A card that could be read, and where it is."""

    file: Path
    data: Parsed


def read_cards(folder: str | Path) -> tuple[list[CardFile], list[str]]:
    """The cards below a folder, and why others cannot be used; links to folders are not followed.

    Raises DataError: no such folder, or more cards than fit.
    """
    root, cards, faults = Path(folder), list[CardFile](), list[str]()
    if not root.is_dir():
        raise DataError(f"{folder}: not a folder", fix="name the folder that holds the evaluation cards")
    for number, file in enumerate(_files(root)):
        if number == MOST_CARDS:
            raise DataError(f"{folder}: more than {MOST_CARDS} cards", fix="name a folder with fewer")
        try:
            cards.append(CardFile(file, _parsed(file)))
        except DataError as error:
            faults.append(str(error))
    return cards, faults


def _files(root: Path) -> Iterator[Path]:
    for number, (place, folders, names) in enumerate(os.walk(root)):
        if number == MOST_FOLDERS:
            raise DataError(f"{root}: more than {MOST_FOLDERS} folders", fix="name a folder with fewer")
        folders.sort()
        for name in sorted(names):
            if name.endswith(CARD):
                yield Path(place) / name


def _parsed(file: Path) -> Parsed:
    """Raises DataError: not a card, or one of an earlier version."""
    try:
        data = json.loads(read_text(file, max_bytes=MOST_BYTES), **JSON_NUMBERS)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({type(error).__name__})") from None
    if not isinstance(data, dict) or not isinstance(data.get("datasets"), dict):
        raise DataError(f"{file}: not an evaluation card")
    if not any(_main(_mapping(d)) for d in data["datasets"].values()):
        raise DataError(f"{file}: no score with the right image (or a card of an earlier version)")
    return data


def board(cards: Sequence[CardFile], page: Path, faults: Sequence[str] = ()) -> Board:
    """Models by benchmarks, linked from a page.

    A column is one benchmark, split, protocol, data hash, number of questions, set of options and score: numbers that
    differ in one of these are never under one heading. A row is one composition with one set of weights and settings;
    of several cards that fill one place the newest counts, and the others are counted.
    """
    rows: dict[str, Row] = {}
    columns: dict[str, Column] = {}
    cells: dict[tuple[str, str], list[tuple[str, Cell]]] = {}
    for card in cards:
        row = _row(card)
        rows.setdefault(row.key, row)
        link, date = _link(card.file, page), _name(card.data.get("date"))
        for name, dataset in list(card.data["datasets"].items())[:MOST_DATASETS]:
            found = _mapping(dataset)
            score = _main(found)
            if score is None:
                continue
            column = _column(_name(name), found, score)
            columns.setdefault(column.key, column)
            bounds = "" if score.interval is None else "{} to {}".format(*map(score.text, score.interval))
            errors = _whole(_mapping(found.get("errors")).get("count"))
            cell = Cell(score.value or 0.0, score.text(score.value), bounds, score.count, errors, link)
            cells.setdefault((row.key, column.key), []).append((date, cell))
    newest = {place: max(found, key=lambda pair: pair[0]) for place, found in cells.items()}
    filled = {place: pair[1].with_others(len(cells[place]) - 1) for place, pair in newest.items()}
    order = sorted(columns.values(), key=lambda column: (column.title.lower(), column.about))
    return Board(sorted(rows.values(), key=lambda row: row.name.lower()), order, filled, len(cards), list(faults))


def _row(card: CardFile) -> Row:
    model, weights = _mapping(card.data.get("model")), card.data.get("weights")
    files = [_mapping(w) for w in weights] if isinstance(weights, list) else []
    hashes = sorted(_name(w.get("sha256")) for w in files)
    known = bool(hashes) and all(hashes)
    short = key_of(hashes)[:SHORT] if known else "weights unknown"
    name = _name(model.get("composition")) or "unnamed"
    trained = next((w for w in reversed(files) if w.get("file")), {})
    last = "/".join(_name(str(trained.get("file", ""))[-LONGEST:]).replace("\\", "/").split("/")[-4:])
    settings = {k: _name(v) for k, v in _mapping(card.data.get("settings")).items()}
    parts = [name, hashes if known else str(card.file), settings]
    return Row(key_of(parts), name, short, f"{last} {_name(trained.get('sha256'))[:SHORT]}".strip())


def _column(name: str, dataset: Parsed, score: Score) -> Column:
    protocol, asked = _mapping(dataset.get("protocol")), _mapping(dataset.get("asked"))
    title = _name(protocol.get("benchmark")) or name
    split, data = _name(asked.get("split")), _name(protocol.get("data"))
    options = {k: _name(asked.get(k)) for k in OPTIONS if asked.get(k) is not None and asked.get(k) != PLAIN.get(k)}
    count = (score.count or 0) + _whole(_mapping(dataset.get("errors")).get("count"))
    facts = [title, split, _name(protocol.get("name")), data, count, options, score.label, score.unit]
    shown = [f"{OPTIONS[k]} {v}".strip() for k, v in options.items() if k not in ("judge", "longest answer in tokens")]
    about = [
        _name(protocol.get("name")),
        split,
        f"n = {count}",
        *shown,
        f"data {data[:SHORT]}" if data else "data unknown",
    ]
    return Column(key_of(facts), title, score.label, ", ".join(filter(None, about)), score.unit == "share")


def _main(dataset: Parsed) -> Score | None:
    """The first score with the right image; None: there is none that is a number."""
    listed = _mapping(dataset.get("scores")).get("right")
    first = _mapping(listed[0]) if isinstance(listed, list) and listed else {}
    value = _number(first.get("value"))
    if value is None:
        return None
    interval = first.get("interval")
    bounds = [_number(v) for v in interval] if isinstance(interval, list) and len(interval) == 2 else []
    known = [b for b in bounds if b is not None]
    unit = "share" if first.get("unit") == "share" else "number"
    count = _whole(first.get("count")) if first.get("count") is not None else None
    return Score(_name(first.get("label")), value, count, known if len(known) == 2 else None, unit=unit)  # type: ignore[arg-type]


def _link(file: Path, page: Path) -> str:
    """The page of a card, relative to the leaderboard's folder; empty if it is not there."""
    target = file.with_name(file.name.removesuffix(CARD) + "_card.html")
    if not target.is_file():
        return ""
    relative = os.path.relpath(target.absolute(), page.absolute().parent)
    return "./" + quote(os.fsencode(relative.replace(os.sep, "/")))


def _mapping(value: Any) -> Parsed:
    return value if isinstance(value, Mapping) else {}


def _name(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return "" if value is None else str(type(value).__name__)
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a large number"
    return " ".join(str(value).split())[:LONGEST]


def _number(value: Any) -> float | None:
    """A finite number of a sensible size, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        return None
    return float(value) if math.isfinite(value) else None


def _whole(value: Any) -> int:
    found = _number(value)
    return int(found) if found is not None and found >= 0 else 0
