"""Questions about images, scored by exact match, with controls that show whether the image is used."""

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
from vlm.tasks.judges import intervals, judge_of
from vlm.tasks.metrics import majority, mean_of, summarise

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation

Control = Literal["right", "wrong", "none", "blank"]
CONTROLS: tuple[Control, ...] = ("right", "wrong", "none", "blank")
"""The question's own image or video, another question's, none at all, a grey one."""
GREY = (128, 128, 128)


class Questions(Protocol):
    """A dataset whose records stay reachable."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def record(self, index: int) -> dict[str, Any]:
        """All fields of a record; ``answer``, and if known ``type``, ``objects``, ``unseen_pair``."""
        ...


@dataclass(frozen=True)
class Prediction:
    """One question with the model's answer and whether it is right."""

    id: str
    question: str
    answer: str
    reference: str
    right: bool
    record: Mapping[str, Any]


def blank() -> Any:
    """A grey image."""
    from PIL import Image as Images

    return Images.new("RGB", (64, 64), GREY)


def key_of(source: Any) -> Any:
    """A medium's source as a key; that of a list of frames is a text."""
    return source if isinstance(source, str | bytes | tuple) else repr(source)


def swap_images(images: Sequence[Any], seed: int = 0) -> dict[Any, Any]:
    """Each distinct image -> another one, drawn once for all from ``seed``.

    A plain shift would not do: question sets often run through types and answers in a fixed order.

    Raises:
        DataError: there is only one image.
    """
    result = {key_of(source): source for source in images}
    distinct = list(result)
    if len(distinct) == 1:
        raise DataError("the control with a wrong image needs at least two different images")
    order = distinct.copy()
    random.Random(seed).shuffle(order)
    return {source: result[order[(i + 1) % len(order)]] for i, source in enumerate(order)}


def with_images(messages: Sequence[Message], control: Control, other: Mapping[Any, Any]) -> list[Message]:
    """The messages with their own images, with those that ``other`` maps them to, with grey ones, or with none."""
    if control == "right":
        return list(messages)
    changed = []
    for message in messages:
        parts: list[Text | Image | Video] = []
        for part in message.parts:
            if isinstance(part, Text):
                parts.append(part)
            elif control == "wrong":
                parts.append(type(part)(other[key_of(part.source)]))
            elif control == "blank":
                grey = blank()
                parts.append(Video([grey]) if isinstance(part, Video) else Image(grey))
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
        """Which image goes with a question, and how many questions run together."""

        image: Control = "right"
        batch_size: int = 64
        max_new_tokens: int = 20
        judge: str = "exact"  # exact, open, or package.module:function

        def __post_init__(self) -> None:
            """Raises ConfigError for an unknown control or judge."""
            judge_of(self.judge)
            if self.image not in CONTROLS:
                raise ConfigError(f"question_answering: image={self.image!r} (allowed: {', '.join(CONTROLS)})")

    config: Config
    card = False
    """Whether a result has an evaluation card."""

    def conversations(self, dataset: Questions, indices: Sequence[int]) -> list[list[Message]]:
        """The prompts: each sample up to its last answer, with the images that ``image`` asks for."""
        samples = [dataset[i] for i in indices]
        other: Mapping[Any, Any] = {}
        if self.config.image == "wrong":
            other = swap_images(
                [m.source for i in range(len(dataset)) for message in dataset[i].messages for m in message.media]
            )
        return [with_images(asked(s), self.config.image, other) for s in samples]

    def drawn(self, engine: Engine, seed: int | None) -> Generation | None:
        """The options of a run with drawn answers; None without a seed."""
        if seed is None:
            return None
        return engine.default_generation().replace(do_sample=True, seed=seed, max_new_tokens=self.config.max_new_tokens)

    def answer(self, engine: Engine, dataset: Questions, generation: Generation | None = None) -> list[Prediction]:
        """Every question answered, in the dataset's order, on every process (each answers its share).

        Raises:
            DataError: an empty dataset, or a record without answer.
            PromptError: a question that does not fit the model.
        """
        from vlm.inference.generation import Generation

        if len(dataset) == 0:
            raise DataError("no question to evaluate on")
        greedy = Generation(do_sample=False, repetition_penalty=1.0, seed=0)
        generation = generation or engine.default_generation(greedy).replace(max_new_tokens=self.config.max_new_tokens)
        mine = range(dist.rank(), len(dataset), dist.world_size())
        texts = engine.generate(self.conversations(dataset, mine), generation, batch_size=self.config.batch_size)
        everyone = [pair for part in dist.gather_objects(list(zip(mine, texts, strict=True))) for pair in part]
        return [self._answered(dataset, i, text) for i, text in sorted(everyone)]

    def _answered(self, dataset: Questions, index: int, text: str) -> Prediction:
        sample, record = dataset[index], dataset.record(index)
        question = asked(sample)
        reference = "".join(m.text for m in sample.messages[len(question) :])
        name = sample.id or str(index)
        right = judge_of(self.config.judge)(question[-1].text, text, reference)
        return Prediction(name, question[-1].text, text, reference, right, record)

    def evaluate(self, engine: Engine, dataset: Questions, generation: Generation | None = None) -> dict[str, Any]:
        """Accuracies of the model and of the majority answer; see :func:`vlm.tasks.metrics.summarise`."""
        return self.score(self.answer(engine, dataset, generation))

    @staticmethod
    def score(answered: Sequence[Prediction], *further: Sequence[Prediction]) -> dict[str, Any]:
        """Numbers of answered questions, with ``majority`` for comparison and bootstrap ``intervals``.

        With ``further`` runs (other seeds) accuracies are means over the runs, ``runs`` has them one by one.
        """
        runs = [[a for a in run if a.reference] for run in (answered, *further)]  # some published sets have no answers
        records = [{**a.record, "answer": a.reference} for a in runs[0]]
        numbers = [summarise(records, [a.right for a in run]) for run in runs]
        shares = [sum(flags) / len(runs) for flags in zip(*([a.right for a in run] for run in runs), strict=True)]
        result = {**numbers[0], "majority": majority(records)}
        result["intervals"] = intervals([r.get("type") for r in records], shares)
        if further:
            result |= mean_of(numbers) | {"runs": [n["overall"] for n in numbers]}
        return result
