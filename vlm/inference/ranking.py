"""Given answers after a prompt: their log-probabilities, and their order by the published loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from vlm.common.errors import NotFiniteError, UserError
from vlm.common.types import IGNORE_INDEX, Example, Output
from vlm.models.precision import autocast

if TYPE_CHECKING:
    from vlm.models.fusion.base import LLMInputs
    from vlm.models.vlm import VLM
    from vlm.processors.processor import Processor

Normaliser = Literal["published", "mean", "sum"]
"""Divisor of a candidate's loss: 1, its number of tokens, or the padded length of the batch minus one.

With ``published`` a candidate's score depends on its batch; it exists to reproduce published numbers.
"""
AT_ONCE = 256
"""Positions whose logits are held at a time."""


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
        examples = [with_ending(prompts[i], answer) for i, answer in zip(rows, answers, strict=True)]
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


@dataclass
class Row:
    """A prompt with one ending, and which endings are read from it: those that it begins with, but for the last id."""

    prompt: int
    ids: list[int]
    endings: list[int] = field(default_factory=list)


def rows_of(endings: Sequence[Sequence[Sequence[int]]]) -> list[Row]:
    """As few rows as the endings of each prompt need: options of one id share a row."""
    result: list[Row] = []
    for number, own in enumerate(endings):
        rows: list[Row] = []
        for place in sorted(range(len(own)), key=lambda k: -len(own[k])):
            ids = list(own[place])
            row = next((r for r in rows if r.ids[: len(ids) - 1] == ids[:-1]), None)
            if row is None:
                rows.append(row := Row(number, ids))
            row.endings.append(place)
        result += rows
    return result


def with_ending(prompt: Example, ids: list[int]) -> Example:
    """The prompt with an ending, whose ids are the targets."""
    labels = [IGNORE_INDEX] * len(prompt.ids) + ids
    return dataclasses.replace(prompt, ids=prompt.ids + ids, labels=labels)


@torch.inference_mode()
def sums_of(
    model: VLM, inputs: LLMInputs, rows: Sequence[Row], endings: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """The summed log-probability of each ending of each prompt.

    Args:
        model: the composition.
        inputs: the fused ``rows``, in that order.
        rows: see :func:`rows_of`.
        endings: per prompt the ids of each ending.

    Raises NotFiniteError: a log-probability that is not a number.
    """
    keep = inputs.predicts()
    with autocast(keep.device, model.compute_dtype):
        hidden = model.llm(inputs, keep)
    starts = (keep.sum(1).cumsum(0) - keep.sum(1)).tolist()
    at, ids, owners = list[int](), list[int](), list[tuple[int, int]]()
    for row, start in zip(rows, starts, strict=True):
        for place in row.endings:
            wanted = endings[row.prompt][place]
            at += range(start, start + len(wanted))
            ids += wanted
            owners += [(row.prompt, place)] * len(wanted)
    result = [[0.0] * len(own) for own in endings]
    for (prompt, place), value in zip(owners, _at(model, hidden, at, ids), strict=True):
        result[prompt][place] += value
    return result


def _at(model: VLM, hidden: Tensor, positions: Sequence[int], ids: Sequence[int]) -> list[float]:
    """Log-probability of each of ``ids`` at its position of ``hidden [t, d]``."""
    where, wanted = (torch.tensor(list(v), dtype=torch.long, device=hidden.device) for v in (positions, ids))
    result = torch.zeros(len(where), dtype=torch.float32, device=hidden.device)
    for first in range(0, len(hidden), AT_ONCE):
        with autocast(hidden.device, model.compute_dtype):
            logits = model.llm.head(hidden[first : first + AT_ONCE]).float()
        inside = ((where >= first) & (where < first + AT_ONCE)).nonzero()[:, 0]
        own = where[inside] - first
        result[inside] = logits[own, wanted[inside]] - logits.logsumexp(dim=-1)[own]
    if not bool(result.isfinite().all()):
        raise NotFiniteError("the log-probability of an answer is not a number", fix="check the weights and the dtypes")
    return result.tolist()
