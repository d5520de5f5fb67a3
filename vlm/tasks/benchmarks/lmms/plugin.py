"""``lmms-eval --model vlm --model_args run=output/mine``: any model of this library in lmms-eval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from vlm.common.dist import pick_device, world_from_env
from vlm.common.errors import ConfigError, DataError, PromptError, UserError, unknown
from vlm.common.types import Message
from vlm.datasets.base import MALFORMED
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.tasks.benchmarks.lmms.requests import generation_of, losses, messages_of
from vlm.tasks.in_flight import InFlight

AUTO = 64
"""What ``--batch_size auto`` means."""
Name: TypeAlias = tuple[str, Any, int]
"""Task, number of the document, and how many equal requests came before."""


class Vlm(lmms):  # type: ignore[misc]
    """Answers requests of lmms-eval with an engine.

    A request that cannot be answered ends the run with the task and the document's number: nothing is answered with
    an empty text in its place.

    Attributes:
        engine: the model.
        device: where it is; of several processes each has its own.
    """

    is_simple = False

    def __init__(
        self,
        run: Any = None,
        batch_size: int | str = 1,
        device: str = "auto",
        options: str = "",
        media_root: str = "",
        seed: int = 0,
        trust: bool = False,
        max_batch_size: Any = None,
        **others: Any,
    ) -> None:
        """Load the model.

        Args:
            run: a run folder, the name of a system, or a YAML file; or an engine.
            batch_size: questions that are answered together, or ``auto``.
            device: see ``Engine.load``.
            options: ``key=value`` changes of the configuration, separated by blanks.
            media_root: folder of images and videos that a task names by a path that does not exist as it is.
            seed: of sampled answers of tasks that name none; the repeats of a question count on from it.
            trust: see ``Engine.load``.
            max_batch_size: not used.
            others: none.

        Raises:
            UserError: no model, an unknown argument, or an unusable value.
        """
        super().__init__()
        if others:
            known = ["run", "batch_size", "device", "options", "media_root", "seed", "trust"]
            raise ConfigError(unknown("argument of --model vlm", next(iter(others)), known))
        if run is None:
            raise ConfigError("--model vlm needs a model", fix="--model_args run=output/mine")
        self.at_once = AUTO if str(batch_size).startswith("auto") else _count(batch_size)
        self.seed = seed
        self.folder = Path(media_root) if media_root else None
        if isinstance(run, Engine):
            self.engine = run
        else:
            where = pick_device(device, world_from_env().local_rank)
            self.engine = Engine.load(str(run), where, options=options.split(), trust=trust)
        self.device = self.engine.device

    def asked(self, arguments: tuple[Any, ...]) -> tuple[Callable[[Any], Any], Mapping[str, Any], Any, str, str]:
        """Of a request for an answer: document -> chat messages, generation options, document, task and split."""
        _, make, options, document, task, split = arguments
        return make, options, document, task, split

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, in the order of the requests. Raises UserError: one that cannot be given."""
        names, seen = list[Name](), Counter[tuple[str, Any]]()
        questions: dict[Generation, dict[Name, Callable[[], list[Message]]]] = {}
        for request in requests:
            make, options, document, task, split = self.asked(request.args)
            name = (task, document, seen[task, document])
            seen[task, document] += 1
            generation = generation_of({"seed": self.seed} | dict(options), self.engine)
            if generation.do_sample and generation.seed is not None:
                generation = generation.replace(seed=generation.seed + name[-1])
            question = partial(self._messages, make, document, task, split)
            questions.setdefault(generation, {})[name] = question
            names.append(name)
        answers: dict[Name, str] = {}
        with tqdm(total=len(names), disable=self.rank != 0, desc="Model Responding") as bar:
            for generation, group in questions.items():
                for found in self._answers(group, generation):
                    answers |= found
                    bar.update(len(found))
        return [answers[name] for name in names]

    def _answers(
        self, questions: Mapping[Name, Callable[[], list[Message]]], generation: Generation
    ) -> Iterator[dict[Name, str]]:
        if generation.num_beams == 1:
            keys = {repr(name): name for name in questions}
            asked = {key: questions[name] for key, name in keys.items()}
            with closing(InFlight(self.engine, generation, self.at_once).answers(asked)) as groups:
                for group in groups:
                    yield {keys[key]: _text(answer, keys[key]) for key, answer in group.items()}
            return
        for name, question in questions.items():
            with _naming(name):
                text = self.engine.generate([question()], generation)[0]
            yield {name: text}

    def _messages(self, make: Callable[[Any], Any], document: Any, task: str, split: str) -> list[Message]:
        try:
            content = ChatMessages(messages=make(self.task_dict[task][split][document]))
            return messages_of(content.model_dump()["messages"], self.folder)
        except MALFORMED as error:
            raise DataError(f"{type(error).__name__}: {error}") from error

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Of each ending the mean loss of its tokens and whether it is what the model writes, as lmms-eval's models do.

        Raises UserError: one that cannot be told.
        """
        endings: dict[tuple[str, Any, str], list[tuple[int, str]]] = {}
        asked: dict[tuple[str, Any, str], list[Message]] = {}
        for place, request in enumerate(requests):
            context, ending, visuals, document, task, split = request.args
            key = (task, document, context)
            if key not in asked:
                with _naming((task, document, 0)):
                    asked[key] = self._messages(partial(_turn, visuals, context), document, task, split)
            text = ending if isinstance(ending, str) else str(ending(self.task_dict[task][split][document]))
            endings.setdefault(key, []).append((place, text))
        result: dict[int, Any] = {}
        keys = list(endings)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for first in range(0, len(keys), self.at_once):
                batch = keys[first : first + self.at_once]
                found = losses(self.engine, [asked[k] for k in batch], [[t for _, t in endings[k]] for k in batch])
                for key, own in zip(batch, found, strict=True):
                    if isinstance(own, DataError | PromptError):
                        raise _failed((key[0], key[1], 0), own)
                    # as a GenerationResult: lmms-eval 0.7.3 turns a plain pair into a string, which no task can score
                    result |= {at: GenerationResult(pair) for (at, _), pair in zip(endings[key], own, strict=True)}
                    bar.update(len(own))
        return [result[place] for place in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raises UserError: questions that depend on earlier answers are not asked."""
        raise ConfigError("tasks of several rounds (generate_until_multi_round) are not run by --model vlm")

    def clean(self) -> None:
        """Let go of what was kept of images and prompts."""
        self.engine.forget()
        super().clean()


class VlmSimple(Vlm):
    """The same for ``--force_simple``, which lmms-eval needs for tasks of multiple choice."""

    is_simple = True

    def asked(self, arguments: tuple[Any, ...]) -> tuple[Callable[[Any], Any], Mapping[str, Any], Any, str, str]:
        """See :meth:`Vlm.asked`: what is said is the context, after the images."""
        context, options, visuals, document, task, split = arguments
        return partial(_turn, visuals, context), options, document, task, split


def _turn(visuals: Callable[[Any], Any], context: str, document: Any) -> Any:
    return ConfigurableMessagesTask._build_user_turn(visuals(document), context)


@contextmanager
def _naming(name: Name) -> Iterator[None]:
    try:
        yield
    except (DataError, PromptError) as error:
        raise _failed(name, error) from error


def _text(answer: str | DataError | PromptError, name: Name) -> str:
    if isinstance(answer, DataError | PromptError):
        raise _failed(name, answer) from answer
    return answer


def _failed(name: Name, error: UserError) -> DataError:
    return DataError(f"{name[0]}, doc_id {name[1]}: {error}")


def _count(batch_size: int | str) -> int:
    if not str(batch_size).isdigit() or int(batch_size) < 1:
        raise ConfigError(f"batch_size is {batch_size!r}, expected a number of questions or auto")
    return int(batch_size)
