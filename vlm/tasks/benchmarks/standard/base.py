"""``StandardBenchmark``: asking and scoring, the same for all; a benchmark adds a YAML file and pure functions.

The functions that the YAML names are looked up in the benchmark's module, then in :mod:`.rules`. There are four kinds:
``read(files) -> items`` (the class's), a prompt ``item -> text``, an answer ``(output, item) -> text or None``, and
metrics ``(items, answers) -> Metric`` or a list of them.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vlm.common.bounds import Count, Natural, Seed
from vlm.common.errors import ConfigError, DataError, unknown
from vlm.common.types import Message
from vlm.datasets.base import MALFORMED
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.base import Prediction, Questions, Result, ask, not_empty, paths_of
from vlm.tasks.benchmarks.numbers import numbers_of, table_of
from vlm.tasks.benchmarks.question_answering import sampling_options
from vlm.tasks.benchmarks.standard import rules
from vlm.tasks.benchmarks.standard.items import Files, Item, Items, asked, unique
from vlm.tasks.benchmarks.standard.spec import Protocol, Spec, read_spec
from vlm.tasks.scoring.statistics import Metric, aligned, averaged

if TYPE_CHECKING:
    from vlm.inference.engine import Engine

SPARE = 8
"""So many more examples are drawn than are shown: some may have the question's image."""
LONGEST = 1000
"""Characters of a message about a file, which may quote a field of any length."""


@dataclass
class StandardOptions:
    """Options of every standard benchmark."""

    protocol: str = ""  # official, lmms or published, as far as the benchmark has them; empty: its default
    split: str = ""  # empty: the first one
    limit: Natural = 0  # ask a sample of this many questions, drawn with ``seed``; 0: all
    shots: Natural = 0  # examples with answers before each question
    shots_path: str = ""  # annotations that they are drawn from, with another split's questions
    shots_media: str = ""  # folder of their images; empty: that of the questions
    seed: Seed = 0  # of the sample and of the examples
    choose: Literal["", "generate", "likelihood"] = ""  # by the text, or the likeliest option; empty: the protocol's
    empty: Literal["error", "wrong"] = "error"  # an empty answer is counted apart, or as a wrong one
    batch_size: Count = 64
    max_new_tokens: Count | None = None  # null: the protocol's
    seeds: list[Seed] = field(default_factory=list)


class StandardBenchmark:
    """Base of the standard benchmarks: ``@register_benchmark("name")`` on a subclass with :meth:`read`.

    Its YAML is the file beside its module with the name :attr:`yaml`, or else with the module's name.
    """

    Config = StandardOptions
    yaml: ClassVar[str] = ""

    @staticmethod
    def read(files: Files) -> Iterable[Item]:
        """The questions of ``files.split``, in the order of the file. Raises DataError: it cannot be read."""
        raise NotImplementedError

    @classmethod
    def spec(cls) -> Spec:
        """What the YAML says."""
        module = Path(inspect.getfile(cls))
        return _spec(module.with_name(f"{cls.yaml or module.stem}.yaml"))

    @classmethod
    def function(cls, name: str) -> Callable[..., Any]:
        """A function that the YAML names. Raises ConfigError: neither the module nor the rules have it."""
        for module in (sys.modules[cls.__module__], rules):
            found = vars(module).get(name)
            if callable(found):
                return found  # type: ignore[no-any-return]
        raise ConfigError(
            unknown(f"function of {cls.__name__}", name, [k for k in vars(rules) if not k.startswith("_")])
        )

    @classmethod
    def items(cls, files: Files) -> list[Item]:
        """The questions. Raises DataError: unreadable, none, an id twice, or no such split."""
        splits = cls.spec().splits
        if files.split and splits and files.split not in splits:
            raise DataError(unknown(f"split of {cls.spec().title}", files.split, splits))
        found: list[Item] = []
        try:
            found.extend(cls.read(files))
            return unique(found, str(files.annotations))
        except DataError as error:
            if len(str(error)) < LONGEST:
                raise
            raise DataError(f"{str(error)[:LONGEST]} ...") from None
        except MALFORMED as error:
            raise DataError(
                f"{files.annotations}: not the annotations of {cls.spec().title} (record {len(found) + 1}: "
                f"{type(error).__name__}: {str(error)[:LONGEST]})",
                fix=f"expected are {', '.join(cls.spec().files)}",
            ) from error

    @classmethod
    def open(cls, annotations: str, media: str, options: StandardOptions) -> Items:
        """The dataset of questions, with examples before each if ``options`` ask for some. Raises DataError."""
        spec, protocol = cls.spec(), cls.spec().protocol(options.protocol)
        files = files_of(annotations, media, options.split or next(iter(spec.splits), ""))
        items = sample(cls.items(files), options.limit, options.seed)
        prompts = [cls.prompt(protocol, item) for item in items]
        shots = cls._shots(items, protocol, files, options) if options.shots else ()
        return Items(items, prompts, shots, files.digest())

    @classmethod
    def prompt(cls, protocol: Protocol, item: Item) -> str:
        """What is asked about an item. Raises DataError: it lacks a field that the prompt names."""
        if protocol.prompt_of:
            return str(cls.function(protocol.prompt_of)(item))
        try:
            shown = {"options": rules.options_of(item), **item.fields, "question": item.question}
            return protocol.prompt.format_map(shown)
        except KeyError as error:
            raise DataError(f"{item.id}: no field {error} for the prompt {protocol.prompt!r}") from None

    @classmethod
    def _shots(cls, items: Sequence[Item], protocol: Protocol, files: Files, options: StandardOptions) -> list[Any]:
        """Examples drawn for each question: never itself, and none with its image. Raises DataError: too few."""
        if not options.shots_path:
            raise ConfigError(
                "few-shot examples need shots_path",
                fix="name the annotations of the training split (--shots-data, in YAML shots_path)",
            )
        split = "train" if "train" in cls.spec().splits else files.split
        folder = Path(options.shots_media) if options.shots_media else files.folder()
        others = cls.items(Files(Path(options.shots_path), folder, split))
        answer = cls.function("example_answer")
        count, result = options.shots, []
        for item in items:
            rng = random.Random(f"{options.seed}/{item.id}")
            drawn = rng.sample(others, min(len(others), count + SPARE))
            usable = [o for o in drawn if not _same(o, item)]
            if len(usable) < count:
                usable = [o for o in rng.sample(others, len(others)) if not _same(o, item)]
            if len(usable) < count:
                raise DataError(
                    f"{options.shots_path}: {len(usable)} examples for question {item.id}, asked for {count}",
                    fix="ask for fewer, or give the annotations of a larger split",
                )
            turns = [(asked(o, cls.prompt(protocol, o)), Message("assistant", answer(o))) for o in usable[:count]]
            result.append(tuple(message for turn in turns for message in turn))
        return result

    def run(self, engine: Engine, dataset: Questions, options: StandardOptions) -> Result:
        """Ask every question and score; see :class:`~vlm.tasks.benchmarks.base.Benchmark`."""
        opened: Items = dataset.origin
        protocol = self.spec().protocol(options.protocol)
        options = _with_length(options, protocol, self.spec())
        if (options.choose or protocol.choose) == "likelihood":
            runs = [self._likeliest(engine, dataset, opened.items, protocol, options.batch_size)]
        else:
            seeds = options.seeds or (None,)
            runs = [
                ask(engine, dataset, sampling_options(engine, options.max_new_tokens, s), options.batch_size)
                for s in seeds
            ]
        return self.score(opened.items, runs, options, opened.digest)

    @classmethod
    def _likeliest(
        cls, engine: Engine, dataset: Questions, items: Sequence[Item], protocol: Protocol, batch_size: int
    ) -> list[Answer]:
        """Multiple choice answers letters; other tasks have no letters and answer a text."""
        from vlm.tasks.likelihood import likeliest

        texts = [item.choices for item in items]
        names = [tuple(rules.LETTERS[: len(own)]) for own in texts] if cls.spec().task == "choice" else texts
        compared = names if protocol.compare == "letters" else texts
        rule: Any = {"letters": "text", "texts": "text", "whole texts": "whole"}.get(protocol.compare, "published")
        return likeliest(engine, dataset, compared, batch_size, names=names, rule=rule)

    @classmethod
    def score(
        cls, items: Sequence[Item], runs: Sequence[Sequence[Answer]], options: StandardOptions, digest: str = ""
    ) -> Result:
        """The scores of one run of answers, or of several whose numbers are averaged; nothing is asked.

        Args:
            items: the questions.
            runs: of each run an answer per question; one with an ``error`` does not count, in any run.
            options: the protocol, and what an empty answer is.
            digest: of the data.
        """
        spec, protocol = cls.spec(), cls.spec().protocol(options.protocol)
        runs = [[not_empty(answer, options.empty) for answer in run] for run in runs]
        good = [k for k in range(len(items)) if not any(run[k].error for run in runs)]
        if not good:
            raise DataError(f"none of the {len(items)} answers can be scored; the first: {runs[0][0].error}")
        scored = [items[k] for k in good]
        read = [[cls.function(protocol.answer)(str(run[k]), items[k]) for k in good] for run in runs]
        metrics = [cls._metrics(protocol, scored, [a or "" for a in answers]) for answers in read]
        shares = [
            cls._shares(protocol, scored, [a or "" for a in answers], m)
            for answers, m in zip(read, metrics, strict=True)
        ]
        together = [aligned(found) for found in zip(*metrics, strict=True)]
        metrics = [[found[k] for found in together] for k in range(len(runs))]
        predictions = []
        for number, run in enumerate(runs):
            by_place = {k: (read[number][j], shares[number][j]) for j, k in enumerate(good)}
            seed = options.seeds[number] if options.seeds else None
            predictions += [
                _prediction(items[k], run[k], *by_place.get(k, (None, None)), seed) for k in range(len(items))
            ]
        facts = {
            "benchmark": spec.title,
            "protocol": _name(spec, options.protocol),
            "split": options.split or next(iter(spec.splits), ""),
        }
        counts = {"count": len(good), "errors": len(items) - len(good), "unread": sum(a is None for a in read[0])}
        numbers = numbers_of(metrics)
        scores = facts | counts | numbers | {"data": digest} | ({"seeds": options.seeds} if options.seeds else {})
        files = _files(cls.function(spec.submission)(items, runs[0])) if spec.submission else {}
        note = _unscored(counts) if spec.unscored else ""
        means, table = tuple(map(averaged, together)), table_of(metrics[0], scores)
        return Result(scores, predictions, table, note, card=True, metrics=means, files=files)

    @classmethod
    def _metrics(cls, protocol: Protocol, items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
        result: list[Metric] = []
        for name in protocol.metrics:
            found = cls.function(name)(items, answers)
            result += [found] if isinstance(found, Metric) else found
        order = [m for m in result if m.label == protocol.primary]
        return order + [m for m in result if m.label != protocol.primary]

    @classmethod
    def _shares(
        cls, protocol: Protocol, items: Sequence[Item], answers: Sequence[str], metrics: Sequence[Metric]
    ) -> Sequence[float | None]:
        if protocol.right:
            return list(cls.function(protocol.right)(items, answers))
        main = metrics[0] if metrics else None
        if main is None or main.total != "mean" or list(main.units) != [item.id for item in items]:
            return [None] * len(items)
        return [float(row[0]) for row in main.rows]


def _same(one: Item, other: Item) -> bool:
    """Whether two items show the same, or without media ask the same."""
    return one.media == other.media and bool(one.media or one.question == other.question)


@cache
def _spec(file: Path) -> Spec:
    return read_spec(file)


def _unscored(counts: Mapping[str, int]) -> str:
    errors = f", {counts['errors']} without an answer" if counts["errors"] else ""
    return f"{counts['count']} answers{errors}; others judge them, see the written file"


def _files(found: Mapping[str, str] | tuple[str, str]) -> dict[str, str]:
    return dict(found) if isinstance(found, Mapping) else dict([found])


def _name(spec: Spec, name: str) -> str:
    return name or spec.default or next(iter(spec.protocols))


def _with_length(options: StandardOptions, protocol: Protocol, spec: Spec) -> StandardOptions:
    return replace(options, max_new_tokens=options.max_new_tokens or protocol.max_new_tokens or spec.max_new_tokens)


def files_of(annotations: str, media: str, split: str) -> Files:
    """Raises DataError: a file or folder that does not exist."""
    for path in filter(None, (annotations, media)):
        if not Path(path).expanduser().exists():
            raise DataError(
                f"{path}: no such file or folder", fix="see eval_file_path and img_path (--data, --media-root)"
            )
    return Files(Path(annotations).expanduser(), Path(media).expanduser() if media else None, split)


def sample(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """All items, or ``limit`` of them, drawn with ``seed``, in the order of the file.

    Items with the same field ``unit`` are scored together; as many units are drawn as fit into ``limit``, at least one.
    """
    if not limit or limit >= len(items):
        return list(items)
    units: dict[Any, list[int]] = {}
    for place, item in enumerate(items):
        units.setdefault(item.fields.get("unit", item.id), []).append(place)
    order = random.Random(seed).sample(list(units.values()), min(limit, len(units)))
    drawn = order[0]
    for places in order[1:]:
        drawn = drawn + places if len(drawn) + len(places) <= limit else drawn
    return [items[place] for place in sorted(drawn)]


def _prediction(item: Item, answer: Answer, read: str | None, share: float | None, seed: int | None) -> Prediction:
    media = paths_of(item.media)
    if answer.error:
        return Prediction(item.id, item.question, "", seed=seed, error=answer.error, media=media)
    fields: dict[str, Any] = {k: v for k, v in item.fields.items() if k in ("type", "category")}
    fields |= {"read": read} if read != str(answer) else {}
    fields |= {"score": share} if share is not None else {}
    right = None if share is None else share >= 0.5
    reference = item.references if isinstance(item.references, str) else _plain(item.references)
    return Prediction(item.id, item.question, str(answer), reference, right, fields, seed, media=media)


def _plain(references: Any) -> str:
    """References in a word: a list's most frequent ones first."""
    if references is None:
        return ""
    if isinstance(references, Sequence):
        texts = [str(r) for r in references]
        return ", ".join(sorted(dict.fromkeys(texts), key=lambda t: -texts.count(t))[:3])
    if isinstance(references, Mapping):
        return ", ".join(f"{k}: {v}" for k, v in references.items())
    return str(references)
