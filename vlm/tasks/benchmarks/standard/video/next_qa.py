"""NExT-QA: why, how and when in everyday videos, by multiple choice and open-ended."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.common.types import Video
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.choice.letters import ANYWHERE, last_named
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.places import nearest, optional_json
from vlm.tasks.benchmarks.standard.rules import LETTERS, is_right, plain
from vlm.tasks.scoring.statistics import Metric, per_item

MAP = "map_vid_vidorID.json"
"""Video -> its path without ending, for the videos in VidOR's folders."""
MORE = "add_reference_answer_{split}.json"
SAME = {"TP": "TN"}
"""Types that the script counts together: before and after."""
KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}
CHOICES = ("a0", "a1", "a2", "a3", "a4")
LETTER = re.compile(r"\(?([A-E])(?:[).:,]|\s|$)")


@register_benchmark("next_qa")
class NextQa(StandardBenchmark):
    """NExT-QA, multiple choice: why, how and when in everyday videos."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Rows ``video, ..., question, answer, qid, type, a0, ..., a4``; ``answer`` is the number of the choice."""
        for name, video, row in _rows(files):
            if row["answer"] not in ("0", "1", "2", "3", "4"):
                raise DataError(
                    f"{files.used[0]}: {name}: answer {row['answer']!r} is not the number of a choice, 0 to 4",
                    fix="next_qa reads the files of multiple choice, next_qa_open the others",
                )
            choices = tuple(row[key] for key in CHOICES)
            yield Item(name, row["question"], (video,), LETTERS[int(row["answer"])], _type(row), choices)


@register_benchmark("next_qa_open")
class NextQaOpen(StandardBenchmark):
    """NExT-QA, open-ended: exact answers; its WUPS is left out, since it needs WordNet."""

    yaml = "next_qa_open"

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Rows ``video, ..., question, answer, qid, type``, and second references where a file has them."""
        rows = list(_rows(files))
        more = optional_json(files, MORE)
        for name, video, row in rows:
            second = more.get(row["video"], {}).get(row["qid"])
            yield Item(name, row["question"], (video,), [row["answer"], *filter(None, [second])], _type(row))


def _rows(files: Files) -> Iterator[tuple[str, Video, dict[str, str]]]:
    rows = files.table("{split}.csv")
    folders = optional_json(files, MAP)
    for row in rows:
        folder = str(folders.get(row["video"], "")).rpartition("/")[0]
        place = nearest(files, row["video"], [folder], (".mp4",))
        yield f"{row['video']}_{row['qid']}", Video(str(files.folder() / place)), row


def _type(row: Mapping[str, str]) -> dict[str, str]:
    return {"type": SAME.get(row["type"], row["type"])}


def letter(output: str, item: Item) -> str | None:
    """The letter at the start, or that of the choice which the answer repeats."""
    text = output.strip()
    found = LETTER.match(text)
    if found:
        return found.group(1)
    said = plain(output, item)
    return next((LETTERS[k] for k, choice in enumerate(item.choices) if choice.lower() == said), None)


def last_letter(output: str, item: Item) -> str | None:
    """The letter that lmms-eval finds; see :func:`last_named`."""
    return last_named(output, [choice.strip() for choice in item.choices], ANYWHERE)


def by_kind(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The share of right answers, in groups of types, and of causal, temporal and descriptive questions."""
    return _by_kind("accuracy", items, is_right(items, answers))


def exact_match(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The share of answers that are equal to a reference."""
    values = [float(a in i.references) for i, a in zip(items, answers, strict=True)]
    return _by_kind("exact match", items, values)


def _by_kind(label: str, items: Sequence[Item], values: Sequence[float]) -> list[Metric]:
    types = [item.fields["type"] for item in items]
    result = [per_item(label, [item.id for item in items], values, groups=types)]
    for first, kind in KINDS.items():
        places = [k for k, own in enumerate(types) if own.startswith(first)]
        if places:
            result.append(per_item(kind, [items[k].id for k in places], [values[k] for k in places]))
    return result


def read_choices(data: Any, items: Sequence[Item]) -> dict[str, str] | None:
    """The answers of a file in the benchmark's form: ``{video_qid: {"prediction": number, "answer": number}}``."""
    if not (isinstance(data, dict) and all(isinstance(v, dict) and "prediction" in v for v in data.values())):
        return None
    return {key: LETTERS[int(value["prediction"])] for key, value in data.items()}


def read_open(data: Any, items: Sequence[Item]) -> dict[str, str] | None:
    """The answers of a file in the benchmark's form: ``{video: {qid: answer}}``."""
    if not (isinstance(data, dict) and all(isinstance(v, dict) for v in data.values())):
        return None
    return {f"{video}_{qid}": text for video, texts in data.items() for qid, text in texts.items()}
