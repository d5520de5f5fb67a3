"""Answers in files: what we wrote, or anybody's result file in a benchmark's own form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.datasets.base import MALFORMED
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.base import NOTHING, Result
from vlm.tasks.benchmarks.standard.base import StandardBenchmark, StandardOptions
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.spec import Stored

SHOWN = 3


def score_file(
    benchmark: type[StandardBenchmark],
    annotations: str,
    media: str,
    answers: Sequence[str],
    options: StandardOptions,
    dataset: str = "",
) -> Result:
    """The scores of answers that somebody wrote; several files are several runs, whose numbers are averaged.

    Of a file of ``vlm eval`` with several datasets, the answers of ``dataset`` count.

    Raises DataError: unreadable files, an answer to no question, two to one, or a question without an answer.
    """
    opened = benchmark.open(annotations, media, options)
    names, stored = [item.id for item in opened.items], benchmark.spec().answers
    runs = []
    for file in answers:
        if not Path(file).is_file():
            raise DataError(f"{file}: no such file", fix="name a file of answers")
        found = _own_form(benchmark, file, opened.items) or read_answers(file, stored, dataset)
        check(file, names, found, whole=not options.limit)
        runs.append([found[name] for name in names])
    options = replace(options, seeds=list(range(len(runs))) if len(runs) > 1 else [])
    return benchmark.score(opened.items, runs, options, opened.digest)


def _own_form(benchmark: type[StandardBenchmark], file: str, items: Sequence[Item]) -> dict[str, Answer]:
    """Id -> answer of a JSON file in a form that only this benchmark has; empty: it is not in that form."""
    name = benchmark.spec().answers.read
    if not name or Path(file).suffix != ".json":
        return {}
    try:
        found = benchmark.function(name)(Files(_existing(file)).json(""), items) or {}
    except MALFORMED as error:
        raise DataError(
            f"{file}: not answers in the form of {benchmark.spec().title} ({type(error).__name__}: {error})",
            fix="give the result file as the benchmark's script writes it, or lines with id and answer",
        ) from error
    return {key: _said(text, f"{file}: {key}") for key, text in found.items()}


def read_answers(file: str, stored: Stored, dataset: str = "") -> dict[str, Answer]:
    """Id -> answer: JSON (a list, or id -> text), JSON Lines, or a table with a header. Raises DataError."""
    result: dict[str, Answer] = {}
    for row in _rows(_existing(file)):
        if not isinstance(row, Mapping):
            raise DataError(f"{file}: found {row!r:.60} in place of an answer with its id", fix=_expected(stored))
        if "dataset" in row and row.get("image", "right") != "right":
            continue  # written by vlm eval, about another image than the question's
        if dataset and row.get("dataset", dataset) != dataset:
            continue
        name, names = _name(row, stored), (*stored.text, "answer")
        if not name or not (row.get("error") or any(field in row for field in names)):
            raise DataError(f"{file}: a line with the fields {', '.join(map(str, row))}", fix=_expected(stored))
        if name in result:
            more = ", or write the answers of each seed to a file of its own" if "seed" in row else ""
            raise DataError(f"{file}: two answers to {name}", fix=f"remove one of them{more}")
        failed = str(row.get("error") or "")
        result[name] = Answer("", failed) if failed else _said(_first(row, names), f"{file}: {name}")
    return result


def _existing(file: str) -> Path:
    if not Path(file).is_file():
        raise DataError(f"{file}: no such file", fix="name a file of answers")
    return Path(file)


def _expected(stored: Stored) -> str:
    return f"expected are {' or '.join(stored.id)}, and {' or '.join(stored.text)}"


def _name(row: Mapping[str, Any], stored: Stored) -> str:
    """The id; a whole number is the same with ``.0``, as tables with missing values have it."""
    found = _first(row, (*stored.id, "id"))
    found = int(found) if isinstance(found, float) and found.is_integer() else found
    return "" if found is None else str(found)


def _said(value: Any, where: str) -> Answer:
    """An answer as a text; null is none, and an error. Raises DataError: a list or an object."""
    if isinstance(value, list | Mapping):
        raise DataError(f"{where}: {value!r:.60} is not an answer", fix="write a text")
    if value is None:
        return Answer("", NOTHING)
    return Answer(str(value).encode("utf-8", "replace").decode())  # half characters have no place in a file


def _rows(file: Path) -> Iterable[Any]:
    files = Files(file)
    if file.suffix in (".tsv", ".csv"):
        return files.table("")
    if file.suffix != ".json":
        return files.json_lines("")
    data = files.json("")
    if isinstance(data, dict):
        lists = [v for v in data.values() if isinstance(v, list)]
        return lists[0] if len(lists) == 1 else [_named(k, v) for k, v in data.items()]
    return data if isinstance(data, list) else ()


def _named(name: str, value: Any) -> Mapping[str, Any]:
    return {**value, "id": name} if isinstance(value, Mapping) else {"id": name, "answer": value}


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def check(file: str, names: Sequence[str], found: Mapping[str, Answer], whole: bool = True) -> None:
    """Raises DataError: the answers are not those of the questions ``names``."""
    known = set(names)
    missing, strange = [n for n in names if n not in found], [n for n in found if n not in known] if whole else []
    if missing or strange:
        problem = f"{len(missing)} of {len(names)} questions have no answer{_some(missing)}"
        problem += f", {len(strange)} answers have no question{_some(strange)}"
        raise DataError(
            f"{file}: {problem}",
            fix="give the annotations and the split of these answers, and --dataset for a file about several",
        )


def _some(names: Sequence[str]) -> str:
    return f" (e.g. {', '.join(names[:SHOWN])})" if names else ""
