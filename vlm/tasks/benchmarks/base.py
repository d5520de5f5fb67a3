"""What a benchmark is: a class that asks a model the questions of one dataset and returns a :class:`Result`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from vlm.common.bounds import Count, Seed
from vlm.common.errors import DataError
from vlm.common.types import Image, Message, Sample, Video
from vlm.datasets.base import MapDataset, read_record, records_in_order
from vlm.datasets.loading.quarantine import SHOWN_RECORDS, too_many
from vlm.tasks.answers import Answer, AnswerParts, Question, answer_all, distinct, key_of
from vlm.tasks.scoring.statistics import Metric

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation

log = logging.getLogger(__name__)

NOTHING = "the answer is empty"


@dataclass
class EvalOptions:
    """Options of every benchmark; the first two come from the dataset's entry, ``seeds`` from ``--seeds``."""

    batch_size: Count = 64  # questions that run together; it changes speed and memory, not the answers
    max_new_tokens: Count = 20
    seeds: list[Seed] = field(default_factory=list)  # one run with sampled answers per seed; none: one run


@dataclass(frozen=True)
class Prediction:
    """One line of the answer file; ``right`` is None where answers are not simply right or wrong.

    ``error``: why the question could not be asked; it then has no answer and does not count.
    """

    id: str
    question: str
    answer: str
    reference: str = ""
    right: bool | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)  # further fields of the line
    seed: int | None = None
    error: str | None = None
    media: Sequence[str] = ()  # paths of the images and videos that were shown, as far as they are files


@dataclass(frozen=True)
class Score:
    """One row of the printed table and of the card: a share of 1 (shown in percent) or another number."""

    label: str
    value: float | None
    count: int | None = None  # questions
    interval: Sequence[float] | None = None  # 95 % confidence bounds of ``value``
    baseline: float | None = None  # of always giving the most frequent answer
    unit: Literal["share", "number"] = "share"
    group: bool = False  # of the first score over some of the questions (a type), not a score of its own

    def text(self, value: float | None) -> str:
        """A share in percent, another number with 4 digits."""
        if value is None:
            return "-"
        return f"{value:.1%}" if self.unit == "share" else f"{value:.4g}"


@dataclass(frozen=True)
class Result:
    """What a benchmark found on one dataset."""

    scores: Mapping[str, Any]  # JSON-ready; written to ``<name>.json``
    predictions: Sequence[Prediction] = ()  # written to ``<name>_answers.jsonl``, in this order
    table: Sequence[Score] = ()  # rows to print; by default the numbers among ``scores``
    note: str = ""  # printed instead of a table, e.g. why there are no scores
    card: bool = False  # write an evaluation card (HTML and JSON) as well
    metrics: Sequence[Metric] = ()  # written to ``<name>_values.jsonl``, so that runs can be compared
    files: Mapping[str, str] = field(default_factory=dict)  # further files to write: name -> content

    def rows(self) -> Sequence[Score]:
        """The rows of ``table``, or one per number among the scores."""
        numbers = {k: v for k, v in self.scores.items() if isinstance(v, int | float)}
        return self.table or [Score(k, v, unit="number") for k, v in numbers.items()]


@runtime_checkable
class Recorded(Protocol):
    """A dataset whose raw records can be read."""

    def record(self, index: int) -> dict[str, Any]:
        """All fields of a record, e.g. ``type``."""
        ...


@runtime_checkable
class OwnFiles(Protocol):
    """A benchmark that reads its questions itself, from the files that an entry names (``eval_file_path``)."""

    def open(self, annotations: str, media: str, options: Any) -> MapDataset:
        """The questions. Raises DataError: the files are not those of the benchmark."""
        ...


@runtime_checkable
class Benchmark(Protocol):
    """The contract of ``@register_benchmark("name")``; ``Config``, a dataclass, holds the options.

    Options are read from the dataset's entry (``batch_size``, ``max_new_tokens``), from ``run.benchmark`` and from the
    command line (``seeds``, ``judge``), as far as ``Config`` has them; :class:`EvalOptions` is a base to build on.
    """

    def run(self, engine: Engine, dataset: Questions, options: Any) -> Result:
        """Ask and score; called on every process, and the result counts on the first.

        Args:
            engine: the model.
            dataset: its records; an image control may have replaced the images.
            options: an instance of ``Config``.
        """
        ...


class Questions:
    """A dataset of any format as benchmarks see it: map style, and with ``record`` (empty if the format lacks it).

    Attributes: ``parts``, where answers are kept as they come, if at all; ``max_bad_share``, the share of unusable
    questions that is an error.
    """

    def __init__(
        self,
        dataset: Any,
        parts: AnswerParts | None = None,
        max_bad_share: float = 0.01,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        """``limit`` questions, drawn with ``seed``, or all of them. Raises DataError: the object is not a dataset."""
        self.parts, self.max_bad_share = parts, max_bad_share
        drawn = records_in_order(dataset, limit, None if limit is None else seed)
        self._dataset, self._order = dataset, sorted(drawn, key=lambda record: record[0])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError: the record cannot be used."""
        return read_record(self._dataset, *self._order[index])

    @property
    def origin(self) -> Any:
        """The dataset itself."""
        return self._dataset

    def record(self, index: int) -> dict[str, Any]:
        """All fields of a record."""
        return self._dataset.record(self._order[index][0]) if isinstance(self._dataset, Recorded) else {}

    def usable(self) -> Iterator[tuple[int, Sample]]:
        """Number and sample of every record that can be read; its media may still be unusable."""
        for index in range(len(self)):
            try:
                yield index, self[index]
            except DataError:
                continue  # ``ask`` reports it


def prompt_of(sample: Sample) -> list[Message]:
    """A sample's messages without the last answer, if it has one."""
    return list(sample.messages[:-1] if sample.messages[-1].role == "assistant" else sample.messages)


def paths_of(media: Iterable[Image | Video]) -> list[str]:
    """The paths of images and videos that are files."""
    return [str(m.source) for m in media if isinstance(m.source, str | PurePath)]


def stamps_of(prompt: Sequence[Message]) -> list[tuple[int, int] | None]:
    """Size and time of change of each file that a prompt shows: where they differ, a question is asked again."""
    result: list[tuple[int, int] | None] = []
    for path in paths_of(medium for message in prompt for medium in message.media):
        try:
            found = os.stat(path)
            result.append((found.st_size, found.st_mtime_ns))
        except (OSError, ValueError):
            result.append(None)
    return result


def ask(engine: Engine, dataset: Questions, generation: Generation, batch_size: int = 64) -> list[Answer]:
    """The model's answer to every sample, in the dataset's order, on every process (each answers its share).

    A question that cannot be asked, e.g. because its image is damaged, has the reason in ``error`` and
    must not be scored.

    Raises DataError: the dataset is empty, or more questions cannot be asked than ``dataset.max_bad_share`` allows.
    """
    if len(dataset) == 0:
        raise DataError("no question to evaluate on")
    prompts = {index: prompt_of(sample) for index, sample in dataset.usable()}
    options = asdict(generation)
    named = distinct(key_of(prompt, options, stamps_of(prompt)) for prompt in prompts.values())
    keys = dict(zip(prompts, named, strict=True))
    asked: dict[str, Question] = {key: partial(list, prompts[index]) for index, key in keys.items()}
    found = answer_all(engine, asked, generation, batch_size, parts=dataset.parts)
    answers = [found[keys[i]] if i in keys else Answer("", reason(dataset, i)) for i in range(len(dataset))]
    return checked(answers, dataset)


def not_empty(answer: Answer, empty: str) -> Answer:
    """The answer, or the error that it is empty; ``empty``: ``error``, or ``wrong``, which leaves it as it is."""
    return answer if answer.strip() or answer.error or empty == "wrong" else Answer("", NOTHING)


def checked(answers: list[Answer], dataset: Questions) -> list[Answer]:
    """The answers; why some questions could not be asked is logged.

    Raises DataError: more of them cannot be asked than ``dataset.max_bad_share`` allows.
    """
    bad = [answer.error for answer in answers if answer.error]
    if bad and (len(bad) == len(dataset) or too_many(len(bad), len(dataset), dataset.max_bad_share)):
        shown = "".join(f"\n  - {text}" for text in bad[:SHOWN_RECORDS])
        raise DataError(
            f"{len(bad)} of {len(dataset)} questions cannot be asked, allowed are {dataset.max_bad_share:.1%}:{shown}",
            fix="repair them and run the same command again (no answer is lost), or raise run.max_bad_share",
        )
    for text in bad:
        log.warning("left out: %s", text)
    return answers


def reason(dataset: Questions, index: int) -> str:
    """Why a record cannot be read."""
    try:
        dataset[index]
    except DataError as error:
        return str(error)
    return ""
