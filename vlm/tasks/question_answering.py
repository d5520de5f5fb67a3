"""Questions about pictures, scored by exact match, with controls that show whether the picture is used."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vlm.common import dist
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_task
from vlm.common.types import Image, Message, Sample, Text, Video
from vlm.tasks.base import Task
from vlm.tasks.scores import exact_match, majority, summarise

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation

Control = Literal["right", "wrong", "none"]
CONTROLS: tuple[Control, ...] = ("right", "wrong", "none")
"""The question's own picture, another question's picture, no picture at all."""


class Questions(Protocol):
    """A dataset whose records stay reachable."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def record(self, index: int) -> dict[str, Any]:
        """All fields of a record; ``answer``, and if known ``type``, ``objects``, ``unseen_pair``."""
        ...


@dataclass(frozen=True)
class Answered:
    """One question with the model's answer and whether it is right."""

    id: str
    question: str
    answer: str
    reference: str
    right: bool
    record: Mapping[str, Any]


def exchanged(pictures: Sequence[Any], seed: int = 0) -> dict[Any, Any]:
    """Each distinct picture -> another one, drawn once for all from ``seed``.

    A plain shift would not do: question sets often run through types and answers in a fixed order.

    Raises:
        DataError: there is only one picture.
    """
    distinct = list(dict.fromkeys(pictures))
    if len(distinct) == 1:
        raise DataError("the control with a wrong picture needs at least two different pictures")
    order = distinct.copy()
    random.Random(seed).shuffle(order)
    return {source: order[(i + 1) % len(order)] for i, source in enumerate(order)}


def with_pictures(messages: Sequence[Message], control: Control, other: Mapping[Any, Any]) -> list[Message]:
    """The messages with their own pictures, with those that ``other`` maps them to, or with none."""
    if control == "right":
        return list(messages)
    changed = []
    for message in messages:
        parts: list[Text | Image | Video] = []
        for part in message.parts:
            if isinstance(part, Text):
                parts.append(part)
            elif control == "wrong":
                parts.append(type(part)(other[part.source]))
        changed.append(Message(message.role, tuple(parts)))
    return changed


def asked(sample: Sample) -> Sequence[Message]:
    """A sample without its last answer, if it has one."""
    return sample.messages[:-1] if sample.messages[-1].role == "assistant" else sample.messages


@register_task("question_answering")
class QuestionAnswering(Task):
    """Asks every question of a dataset, greedily or as ``model.generation`` says, and counts exact matches."""

    @dataclass
    class Config:
        """Which picture goes with a question, and how many questions run together."""

        image: Control = "right"
        batch_size: int = 64
        max_new_tokens: int = 20

        def __post_init__(self) -> None:
            """Raises ConfigError for an unknown control."""
            if self.image not in CONTROLS:
                raise ConfigError(f"question_answering: image={self.image!r} (allowed: {', '.join(CONTROLS)})")

    config: Config

    def conversations(self, dataset: Questions, indices: Sequence[int]) -> list[list[Message]]:
        """The prompts: each sample up to its last answer, with the pictures that ``image`` asks for."""
        samples = [dataset[i] for i in indices]
        other: Mapping[Any, Any] = {}
        if self.config.image == "wrong":
            other = exchanged(
                [m.source for i in range(len(dataset)) for message in dataset[i].messages for m in message.media]
            )
        return [with_pictures(asked(s), self.config.image, other) for s in samples]

    def answer(self, engine: Engine, dataset: Questions, generation: Generation | None = None) -> list[Answered]:
        """Every question answered, in the dataset's order, on every process (each answers its share).

        Raises:
            DataError: an empty dataset, or a record without answer.
            PromptError: a question that does not fit the model.
        """
        from vlm.inference.generation import Generation

        if len(dataset) == 0:
            raise DataError("no question to evaluate on")
        greedy = Generation(do_sample=False, repetition_penalty=1.0, seed=0)
        generation = generation or engine.usual(greedy).but(max_new_tokens=self.config.max_new_tokens)
        mine = range(dist.rank(), len(dataset), dist.world_size())
        texts = engine.generate(self.conversations(dataset, mine), generation, batch_size=self.config.batch_size)
        everyone = [pair for part in dist.gather_objects(list(zip(mine, texts, strict=True))) for pair in part]
        return [self._answered(dataset, i, text) for i, text in sorted(everyone)]

    @staticmethod
    def _answered(dataset: Questions, index: int, text: str) -> Answered:
        sample, record = dataset[index], dataset.record(index)
        question = asked(sample)
        reference = "".join(m.text for m in sample.messages[len(question) :])
        name = sample.id or str(index)
        return Answered(name, question[-1].text, text, reference, exact_match(text, reference), record)

    def evaluate(self, engine: Engine, dataset: Questions, generation: Generation | None = None) -> dict[str, Any]:
        """Accuracies of the model and of the majority answer; see :func:`vlm.tasks.scores.summarise`."""
        return self.score(self.answer(engine, dataset, generation))

    @staticmethod
    def score(answered: Sequence[Answered]) -> dict[str, Any]:
        """Numbers of answered questions, with ``majority`` for comparison."""
        known = [a for a in answered if a.reference]  # some published question sets have no answers
        records = [{**a.record, "answer": a.reference} for a in known]
        return {**summarise(records, [a.right for a in known]), "majority": majority(records)}
