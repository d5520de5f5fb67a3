"""Scores of finished result files (``{"index", "text_output"}`` lines) against the records they answer; no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.datasets.formats.table.read import AllRows
from vlm.tasks.benchmarks.question_answering import Prediction, QuestionAnswering
from vlm.tasks.judges import judge_of


def score_files(
    records: str | Sequence[str], predictions: Sequence[str], judge: str = "open", index: str = "index"
) -> dict[str, Any]:
    """Numbers of one result file, or of several runs over the same records.

    Args:
        records: annotation files with ``question``, ``answer`` (a text, or a list whose first counts) and ``class``.
        predictions: result files of the published program or of ``vlm generate``, one per run.
        judge: what counts as right.
        index: field that names a record.

    Returns:
        as :meth:`QuestionAnswering.score`.

    Raises:
        DataError: unreadable files, records without answer, or predictions that do not belong to the records.
        ConfigError: no such judge.
    """
    judge_of(judge)
    rows = AllRows(records)
    asked = {}
    for k in range(len(rows)):
        record, where = rows[k]
        name = str(record.get(index, k))
        if name in asked:
            raise DataError(f"{where}: {index} {name} a second time", fix="score the files one by one")
        asked[name] = (record, where)
    return QuestionAnswering.score(*(_run(asked, file, judge) for file in predictions))


def _run(asked: Mapping[str, tuple[Mapping[str, Any], str]], file: str, judge: str) -> list[Prediction]:
    declared: dict[str, str] = {}
    rows = AllRows(file)
    for k in range(len(rows)):
        line, where = rows[k]
        if "index" not in line or not isinstance(line.get("text_output"), str):
            raise DataError(f"{where}: no index and text_output", fix="give a result file of vlm generate")
        declared[str(line["index"])] = line["text_output"]
    missing, strange = [n for n in asked if n not in declared], [n for n in declared if n not in asked]
    if missing or strange:
        result = f"{len(missing)} of {len(asked)} records have no line" + (f" (first: {missing[0]})" if missing else "")
        result += f", {len(strange)} lines have no record" + (f" (first: {strange[0]})" if strange else "")
        raise DataError(f"{file}: {result}", fix="give the annotation file that these answers belong to")
    return [_answered(name, *asked[name], declared[name], judge) for name in asked]


def _answered(name: str, record: Mapping[str, Any], where: str, text: str, judge: str) -> Prediction:
    reference, question = record.get("answer"), str(record.get("question", ""))
    reference = reference[0] if isinstance(reference, list) and reference else reference
    if not isinstance(reference, str) or not reference.strip():
        raise DataError(f"{where}: no answer to compare with", fix="score records that have one")
    right = judge_of(judge)(question, text, reference)
    return Prediction(
        name, question, text, reference, right, {**record, "type": record.get("class", record.get("type"))}
    )
