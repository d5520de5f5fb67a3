"""Multiple choice by likelihood: the model writes nothing; the option that it finds likeliest is its answer.

What is compared is the log-probability of an option as the answer to the question, summed over its tokens. Where the
question shows the options with letters, the letters are compared, else the texts. Rules differ in what a sum counts:

* ``text``: the tokens of the option, as lm-eval and lmms-eval count;
* ``whole``: these and what ends an answer, so that an option which begins like a longer one is not likelier for that
  (SEED-Bench);
* ``published``: as ``whole``, divided by the padded length of the batch (the published ``multi_select``, for IconQA).
  The result depends on the batches, and so on ``batch_size`` and the number of processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from vlm.common.errors import DataError, PromptError
from vlm.common.types import Message
from vlm.tasks.answers import Answer, distinct, key_of, share_out
from vlm.tasks.benchmarks.base import Questions, checked, prompt_of, reason, stamps_of

if TYPE_CHECKING:
    from vlm.inference.engine import Engine

Sums: TypeAlias = "list[float] | DataError | PromptError"
"""Log-probability of each ending of a question, or why it cannot be asked."""
Rule = Literal["text", "whole", "published"]


def likeliest(
    engine: Engine,
    dataset: Questions,
    choices: Sequence[Sequence[str]],
    batch_size: int,
    *,
    names: Sequence[Sequence[str]] | None = None,
    rule: Rule = "text",
) -> list[Answer]:
    """The likeliest choice of every question, in the dataset's order, on every process (each asks its share).

    Of equally likely choices it is the first.

    Args:
        engine: the model.
        dataset: its questions.
        choices: what may follow each question: letters where the prompt shows the options with letters, or texts.
        batch_size: questions that run together; it changes speed and memory, not the answers.
        names: what is answered for each choice, e.g. its letter; None: the choice itself.
        rule: what is compared, see above.

    Raises:
        DataError: a question without choices, or more questions cannot be asked than ``dataset.max_bad_share`` allows.
    """
    empty = next((k for k, own in enumerate(choices) if not own), None)
    if empty is not None:
        raise DataError(f"question {empty} has no choices", fix="answer by generation (choose: generate)")
    prompts = {index: prompt_of(sample) for index, sample in dataset.usable()}
    unique = distinct(key_of(prompts[k], choices[k], rule, stamps_of(prompts[k])) for k in prompts)
    keys = dict(zip(prompts, unique, strict=True))

    def groups(mine: list[int]) -> Generator[dict[int, Answer], None, None]:
        asked, endings = [prompts[k] for k in mine], [choices[k] for k in mine]
        for group in _in_batches(engine, asked, endings, batch_size, rule):
            yield {mine[at]: _best(sums, (names or choices)[mine[at]]) for at, sums in group.items()}

    found = share_out(keys, groups, batch_size, dataset.parts)
    answers = [found[k] if k in found else Answer("", reason(dataset, k)) for k in range(len(dataset))]
    return checked(answers, dataset)


def _in_batches(
    engine: Engine, asked: Sequence[list[Message]], endings: Sequence[Sequence[str]], batch_size: int, rule: Rule
) -> Iterator[dict[int, Sums]]:
    """Place -> what is compared, the highest being the best, batch by batch."""
    for first in range(0, len(asked), batch_size):
        places = range(first, min(first + batch_size, len(asked)))
        found = _sums(engine, asked[first : places.stop], endings[first : places.stop], rule)
        yield dict(zip(places, found, strict=True))


def _sums(engine: Engine, asked: Sequence[list[Message]], endings: Sequence[Sequence[str]], rule: Rule) -> list[Sums]:
    """A batch that fails is halved until the faulty questions are found."""
    try:
        if rule == "published":
            return [[-loss for loss in ranking.losses] for ranking in engine.rank(asked, endings)]
        return list(engine.log_likelihoods(asked, endings, end=rule == "whole"))
    except (DataError, PromptError) as error:
        if len(asked) == 1:
            return [error]
    half = len(asked) // 2
    return [*_sums(engine, asked[:half], endings[:half], rule), *_sums(engine, asked[half:], endings[half:], rule)]


def _best(sums: Sums, names: Sequence[str]) -> Answer:
    """The name of the likeliest choice, or why there is none."""
    if isinstance(sums, DataError | PromptError):
        return Answer("", str(sums))
    return Answer(names[max(range(len(sums)), key=lambda k: sums[k])])
