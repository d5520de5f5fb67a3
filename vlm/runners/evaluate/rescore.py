"""Scores of finished result files (``{"index", "text_output"}`` lines) against the records they answer; no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.datasets.formats.table.read import AllRows
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.base import Prediction, Result
from vlm.tasks.benchmarks.question_answering import GROUPINGS, result_of
from vlm.tasks.judges import Judge, judge_of


def rescore(
    records: str | Sequence[str], predictions: Sequence[str], judge: str = "open", index: str = "index"
) -> Result:
    """The result of one file of answers, or of several runs over the same records.

    Args:
        records: annotation files with ``question``, ``answer`` (a text, or a list whose first counts) and ``class``.
        predictions: result files of the published program or of ``vlm generate``, one per run.
        judge: what counts as right.
        index: field that names a record.

    Raises:
        DataError: unreadable files, records without answer, or predictions that do not belong to the records.
        ConfigError: no such judge.
    """
    right, rows, questions = judge_of(judge), AllRows(records), {}
    for k in range(len(rows)):
        record, where = rows[k]
        name = str(record.get(index, k))
        if name in questions:
            raise DataError(f"{where}: {index} {name} occurs twice", fix="score the files one by one")
        questions[name] = (record, where)
    return result_of(*(_run(questions, file, right) for file in predictions))


def _run(questions: Mapping[str, tuple[Mapping[str, Any], str]], file: str, judge: Judge) -> list[Prediction]:
    answers: dict[str, Answer] = {}
    rows = AllRows(file)
    for k in range(len(rows)):
        line, where = rows[k]
        error = str(line.get("error") or "")
        if "index" not in line or not (error or isinstance(line.get("text_output"), str)):
            raise DataError(f"{where}: no index and text_output", fix="give a result file of vlm generate")
        if str(line["index"]) in answers:
            raise DataError(f"{where}: a second line with index {line['index']}", fix="remove one of them")
        answers[str(line["index"])] = Answer(line["text_output"] or "", error)
    missing, strange = [n for n in questions if n not in answers], [n for n in answers if n not in questions]
    if missing or strange:
        problem = f"{len(missing)} of {len(questions)} records have no line" + _first(missing)
        problem += f", {len(strange)} lines have no record" + _first(strange)
        raise DataError(f"{file}: {problem}", fix="give the annotation file that these answers belong to")
    return [_judged(name, *questions[name], answers[name], judge) for name in questions]


def _first(names: Sequence[str]) -> str:
    return f" (first: {names[0]})" if names else ""


def _judged(name: str, record: Mapping[str, Any], where: str, answer: Answer, judge: Judge) -> Prediction:
    reference, question = record.get("answer"), str(record.get("question", ""))
    reference = reference[0] if isinstance(reference, list) and reference else reference
    if not isinstance(reference, str) or not reference.strip():
        raise DataError(f"{where}: no answer to compare with", fix="score records that have one")
    if answer.error:
        return Prediction(name, question, "", error=answer.error)
    named = {**record, "type": record.get("class", record.get("type"))}
    fields = {k: named[k] for k in GROUPINGS if k in named}
    return Prediction(name, question, answer, reference, judge(question, answer, reference), fields)
