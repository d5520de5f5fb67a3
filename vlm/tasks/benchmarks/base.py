"""What a benchmark is: a class that asks a model the questions of one dataset and returns a :class:`Result`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from vlm.common import dist
from vlm.common.bounds import Count, Seed
from vlm.common.errors import DataError
from vlm.common.types import Message, Sample
from vlm.datasets.base import read_record, records_in_order

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation


@dataclass
class EvalOptions:
    """Options of every benchmark; the first two come from the dataset's entry, ``seeds`` from ``--seeds``."""

    batch_size: Count = 64  # questions that run together; it changes speed and memory, not the answers
    max_new_tokens: Count = 20
    seeds: list[Seed] = field(default_factory=list)  # one run with sampled answers per seed; none: one run


@dataclass(frozen=True)
class Prediction:
    """One line of the answer file; ``right`` is None where answers are not simply right or wrong."""

    id: str
    question: str
    answer: str
    reference: str = ""
    right: bool | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)  # further fields of the line
    seed: int | None = None


@dataclass(frozen=True)
class Score:
    """One row of the printed table and of the card: a share of 1 (shown in percent) or another number."""

    label: str
    value: float | None
    count: int | None = None  # questions
    interval: Sequence[float] | None = None  # 95 % confidence bounds of ``value``
    baseline: float | None = None  # of always giving the most frequent answer
    unit: Literal["share", "number"] = "share"

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
    """A dataset of any format as benchmarks see it: map style, and with ``record`` (empty if the format lacks it)."""

    def __init__(self, dataset: Any) -> None:
        """Raises DataError: the object is not a dataset."""
        self._dataset, self._order = dataset, list(records_in_order(dataset))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Sample:
        return read_record(self._dataset, *self._order[index])

    def record(self, index: int) -> dict[str, Any]:
        """All fields of a record."""
        return self._dataset.record(index) if isinstance(self._dataset, Recorded) else {}


def prompt_of(sample: Sample) -> list[Message]:
    """A sample's messages without the last answer, if it has one."""
    return list(sample.messages[:-1] if sample.messages[-1].role == "assistant" else sample.messages)


def ask(engine: Engine, dataset: Questions, generation: Generation, batch_size: int = 64) -> list[str]:
    """The model's answer to every sample, in the dataset's order, on every process (each answers its share).

    Raises DataError: the dataset is empty; PromptError: a question does not fit the model.
    """
    if len(dataset) == 0:
        raise DataError("no question to evaluate on")
    mine = range(dist.rank(), len(dataset), dist.world_size())
    texts = engine.generate([prompt_of(dataset[i]) for i in mine], generation, batch_size=batch_size)
    everyone = [pair for part in dist.gather_objects(list(zip(mine, texts, strict=True))) for pair in part]
    return [text for _, text in sorted(everyone)]
