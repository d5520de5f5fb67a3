"""Ranks given answers by their loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from vlm.common.errors import NotFiniteError, UserError
from vlm.common.types import IGNORE_INDEX, Example, Output

if TYPE_CHECKING:
    from vlm.processors.processor import Processor

Normaliser = Literal["published", "mean", "sum"]
"""Divisor of a candidate's loss: 1, its number of tokens, or the padded length of the batch minus one.

With ``published`` a candidate's score depends on its batch; it exists to reproduce published numbers.
"""


@dataclass(frozen=True)
class Ranking:
    """Losses of the candidates of one conversation."""

    losses: tuple[float, ...]

    @property
    def order(self) -> list[int]:
        """Indices of the candidates, lowest loss first."""
        return sorted(range(len(self.losses)), key=lambda i: self.losses[i])

    @property
    def best(self) -> int:
        """Index of the candidate with the lowest loss."""
        return self.order[0]


@torch.inference_mode()
def rank_candidates(
    score: Callable[[Sequence[Example]], Output],
    processor: Processor,
    prompts: Sequence[Example],
    candidates: Sequence[Sequence[str]],
    normalise: Normaliser,
) -> list[Ranking]:
    """See ``Engine.rank``.

    Args:
        score: examples -> output with logits ``[b, L, vocab]``.
        processor: tokenises the candidates.
        prompts: b prompts with the assistant's turn open.
        candidates: b lists of at least one text each.
        normalise: what a loss is divided by, see ``Normaliser``.

    Raises:
        NotFiniteError: a loss that is not a number.
        UserError: the two lists differ in length, or a conversation has no candidate.
    """
    if len(prompts) != len(candidates) or not all(candidates):
        counts = f"{len(prompts)} conversation(s), candidates: {[len(c) for c in candidates]}"
        raise UserError(f"ranking needs at least one candidate for every conversation, found {counts}")
    if normalise not in get_args(Normaliser):
        raise UserError(f"normalise is {normalise!r}, expected {' or '.join(get_args(Normaliser))}")
    losses: list[list[float]] = [[] for _ in prompts]
    for column in range(max(map(len, candidates), default=0)):
        rows = [i for i, texts in enumerate(candidates) if column < len(texts)]
        answers = [processor.encode_answer(candidates[i][column]) for i in rows]
        examples = [_with_answer(prompts[i], answer) for i, answer in zip(rows, answers, strict=True)]
        output = score(examples)
        assert output.logits is not None and output.labels is not None
        sums, numbers = token_losses(output.logits, output.labels)
        if not bool(sums.isfinite().all()):
            raise NotFiniteError("the loss of a candidate is not a number", fix="check the weights and the dtypes")
        divisors = {"sum": torch.ones_like(sums), "mean": numbers, "published": _published(output.labels, numbers)}
        for i, loss in zip(rows, (sums / divisors[normalise]).tolist(), strict=True):
            losses[i].append(loss)
    return [Ranking(tuple(row)) for row in losses]


def token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy ``[b]`` and number of targets ``[b]`` of ``logits [b, L, vocab]``, ``labels [b, L]``."""
    losses = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses.sum(dim=1), (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)


def _published(labels: Tensor, counts: Tensor) -> Tensor:
    """Longest prompt plus longest answer, minus one: prompts and answers were padded separately."""
    prompts = (labels != IGNORE_INDEX).long().argmax(dim=1)
    return torch.full_like(counts, int(prompts.max() + counts.max()) - 1)


def _with_answer(prompt: Example, answer: list[int]) -> Example:
    labels = [IGNORE_INDEX] * len(prompt.ids) + answer
    return dataclasses.replace(prompt, ids=prompt.ids + answer, labels=labels)
