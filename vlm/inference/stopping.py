"""When a row is finished, and the rules that change scores before a token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlm.inference.generation import Generation

if TYPE_CHECKING:
    from vlm.processors.tokenizer.tokenizer import Tokenizer

StopSequences = tuple[tuple[int, ...], ...]

CONTEXTS = ("", "a", ".", "a ", "\n")
"""Texts before a stop text, on which its tokens depend."""


@dataclass(frozen=True)
class StopCriteria:
    """What ends a row: end ids and stop sequences; with the begin and pad ids, and ids that are never generated."""

    eos: tuple[int, ...]
    bos: int
    pad: int
    stops: StopSequences = ()
    banned: tuple[int, ...] = ()


def stop_sequences(tokenizer: Tokenizer, texts: Sequence[str]) -> StopSequences:
    """Token sequences that spell a stop text at the start of a segment, after a word, punctuation or a space.

    With the LLaMA vocabulary ``###`` gives ``(835,)`` and ``(2277, 29937)``, the two published sequences.
    """
    result: dict[tuple[int, ...], None] = {}
    for text in texts:
        for context in CONTEXTS:
            before, both = tokenizer.encode(context), tokenizer.encode(context + text)
            same = 0
            while same < min(len(before), len(both)) and before[same] == both[same]:
                same += 1
            tail = tuple(both[same:])
            if tail and tokenizer.decode(list(tail), skip_special=False).strip() == text.strip():
                result[tail] = None
    return tuple(result)


def ends_with(ids: Sequence[int], stops: StopSequences) -> bool:
    """Whether a row's new tokens end with one of the sequences."""
    return any(len(ids) >= len(stop) and tuple(ids[-len(stop) :]) == stop for stop in stops)


class PublishedRepetitionPenalty(LogitsProcessor):
    """Penalises tokens of the answer so far, and the beginning-of-sequence token from the first step.

    transformers 4.30, with which the systems were published, put a dummy beginning token before the
    new tokens when only embeddings were given, and counted it. Prompt tokens are not penalised.
    """

    def __init__(self, penalty: float, bos_id: int) -> None:
        self.penalty = penalty
        self.bos_id = bos_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids [b, t]``: new tokens only; ``scores [b, vocab]``. Source: Keskar et al. 2019, section 4.1."""
        bos = torch.full_like(input_ids[:, :1], self.bos_id) if input_ids.shape[1] else None
        if bos is None:
            bos = torch.full((scores.shape[0], 1), self.bos_id, dtype=torch.long, device=scores.device)
        seen = torch.cat([bos, input_ids], dim=1)
        values = scores.gather(1, seen)
        values = torch.where(values < 0, values * self.penalty, values / self.penalty)
        return scores.scatter(1, seen, values)


class NoRepeatNGram(LogitsProcessor):
    """Forbids a token that would repeat ``size`` tokens in a row of the dummy beginning token and the answer so far."""

    def __init__(self, size: int, bos_id: int) -> None:
        self.size = size
        self.bos_id = bos_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids [b, t]``: new tokens only; ``scores [b, vocab]``."""
        scores = scores.clone()
        for row, new in enumerate(input_ids.tolist() or [[]] * len(scores)):
            ids = [self.bos_id, *new]
            last = tuple(ids[len(ids) - self.size + 1 :])
            runs = [tuple(ids[i : i + self.size]) for i in range(len(ids) - self.size + 1)]
            banned = [run[-1] for run in runs if run[:-1] == last]
            scores[row, banned] = -torch.inf
        return scores


class Ban(LogitsProcessor):
    """Forbids tokens until a row has ``minimum`` new tokens, or throughout."""

    def __init__(self, ids: Sequence[int], minimum: int | None = None) -> None:
        self.ids, self.minimum = list(ids), minimum

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids [b, t]``: new tokens only; ``scores [b, vocab]``."""
        if self.minimum is not None and input_ids.shape[1] >= self.minimum:
            return scores
        scores = scores.clone()
        scores[:, self.ids] = -torch.inf
        return scores


def fixed_rules(generation: Generation, ends: StopCriteria) -> list[LogitsProcessor]:
    """Rules with and without sampling, in the order of transformers: penalty, n-grams, minimum length, bans."""
    result: list[LogitsProcessor] = []
    if generation.repetition_penalty != 1:
        result.append(PublishedRepetitionPenalty(generation.repetition_penalty, ends.bos))
    if generation.no_repeat_ngram_size:
        result.append(NoRepeatNGram(generation.no_repeat_ngram_size, ends.bos))
    if generation.min_new_tokens:
        result.append(Ban(ends.eos, generation.min_new_tokens))
    if ends.banned:
        result.append(Ban(ends.banned))
    return result


def score_rules(generation: Generation, ends: StopCriteria) -> Any:
    """:func:`fixed_rules`, then for sampling temperature, top-k, top-p."""
    result = fixed_rules(generation, ends)
    return LogitsProcessorList([*result, *sampling_rules(generation)] if generation.do_sample else result)


def sampling_rules(generation: Generation, keep: int = 1) -> list[LogitsProcessor]:
    """Temperature, top-k, top-p; at least ``keep`` tokens stay."""
    result: list[LogitsProcessor] = []
    if generation.temperature != 1:
        result.append(TemperatureLogitsWarper(generation.temperature))
    if generation.top_k:
        result.append(TopKLogitsWarper(generation.top_k, min_tokens_to_keep=keep))
    if generation.top_p < 1:
        result.append(TopPLogitsWarper(generation.top_p, min_tokens_to_keep=keep))
    return result


def row_generators(rows: int, seed: int | None) -> list[torch.Generator]:
    """A generator on the CPU for each row, all with the same seed; None: seeded by the system."""
    generators = [torch.Generator() for _ in range(rows)]
    for generator in generators:
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
    return generators
