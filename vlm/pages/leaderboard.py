"""Models by benchmarks as one page: a table that sorts and filters in the browser, with its numbers to download."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlm.pages.bars import percent, top_of
from vlm.pages.parts import render

FAULTS_SHOWN = 20
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell of a CSV file must not begin with, since a spreadsheet would run it."""


@dataclass(frozen=True)
class Row:
    """A model: its composition, a hash of all its weights, and the file that was loaded last."""

    key: str
    name: str
    weights: str
    trained: str


@dataclass(frozen=True)
class Column:
    """One number of one benchmark: its name, the score, and everything else that it depends on, for people."""

    key: str
    title: str
    score: str
    about: str
    share: bool


@dataclass(frozen=True)
class Cell:
    """A number with its interval, the questions that count, those that do not, and the card that has it."""

    value: float
    text: str
    bounds: str = ""
    count: int | None = None
    errors: int = 0
    link: str = ""
    others: int = 0  # older cards with this number

    def with_others(self, others: int) -> Cell:
        """The cell with the number of older cards."""
        return replace(self, others=others)


@dataclass(frozen=True)
class Board:
    """A table: rows, columns, (row key, column key) -> cell; how many cards were read, and why others were not."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    cells: Mapping[tuple[str, str], Cell]
    cards: int
    faults: list[str] = field(default_factory=list)


def page(board: Board, title: str = "") -> str:
    """The page."""
    tops = {
        c.key: top_of((v.value for (_, column), v in board.cells.items() if column == c.key), c.share)
        for c in board.columns
    }
    table = []
    for row in board.rows:
        cells = [(c, board.cells.get((row.key, c.key))) for c in board.columns]
        table.append((row, [(cell, percent(cell.value, tops[c.key]) if cell else "") for c, cell in cells]))
    return render(
        "leaderboard.html",
        title=title or "Leaderboard",
        kind="wide",
        script="leaderboard.js",
        board=board,
        table=table,
        faults=board.faults[:FAULTS_SHOWN],
        downloads={
            "leaderboard.csv": _data_url("text/csv", csv_text(board)),
            "leaderboard.json": _data_url("application/json", json.dumps(_records(board), indent=1)),
        },
    )


def csv_text(board: Board) -> str:
    """One line per number; texts that a spreadsheet would run as a formula begin with an apostrophe."""
    out = io.StringIO()
    records = _records(board)
    writer = csv.writer(out)
    names = list(records[0]) if records else ["model", "value"]
    writer.writerow(names)
    writer.writerows([_safe(record[name]) for name in names] for record in records)
    return out.getvalue()


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _records(board: Board) -> list[dict[str, Any]]:
    rows, columns = {r.key: r for r in board.rows}, {c.key: c for c in board.columns}
    return [
        {
            "model": rows[row].name, "weights": rows[row].weights, "trained": rows[row].trained,
            "benchmark": columns[column].title, "score": columns[column].score, "about": columns[column].about,
            "value": cell.value, "interval": cell.bounds, "questions": cell.count, "errors": cell.errors,
            "card": cell.link,
        }
        for (row, column), cell in board.cells.items()
    ]  # fmt: skip


def _data_url(kind: str, text: str) -> str:
    content = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    return f"data:{kind};charset=utf-8;base64,{content}"
