"""When a row of a batch is finished, and the rules that change the scores of its next token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlm.common.errors import NotFiniteError
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
            tail = tuple(both[len(os.path.commonprefix([before, both])) :])
            if tail and tokenizer.decode(list(tail), skip_special=False).strip() == text.strip():
                result[tail] = None
    return tuple(result)


def ends_with(ids: Sequence[int], stops: StopSequences) -> bool:
    """Whether a row's new tokens end with one of the sequences."""
    return any(len(ids) >= len(stop) and tuple(ids[-len(stop) :]) == stop for stop in stops)


def check_logits(logits: Tensor) -> None:
    """Raises NotFiniteError: the largest of a row of logits ``[b, vocab]`` is not a number."""
    if not bool(logits.amax(-1).isfinite().all()):
        raise not_finite()


def not_finite() -> NotFiniteError:
    """The error of logits that are not numbers."""
    return NotFiniteError(
        "the language model's logits are not numbers (NaN or infinity), so there is no next token",
        fix="check its weights; use bf16 or fp32 in place of fp16 or 8 bits (model.llm.dtype, model.llm.quantize)",
    )


class AfterDummyToken(LogitsProcessor):
    """Applies ``rule`` to the answer so far with a beginning-of-sequence token before it.

    transformers 4.30, with which the systems were published, put such a dummy token before the new tokens when only
    embeddings were given, and counted it. Prompt tokens are not counted.
    """

    def __init__(self, rule: LogitsProcessor, bos_id: int) -> None:
        self.rule = rule
        self.bos_id = bos_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids [b, t]``: new tokens only; ``scores [b, vocab]``."""
        bos = torch.full((len(scores), 1), self.bos_id, dtype=torch.long, device=scores.device)
        return self.rule(torch.cat([bos, input_ids], dim=1), scores)


class Forbid(LogitsProcessor):
    """Forbids tokens, throughout or until a row has ``minimum`` new tokens."""

    def __init__(self, ids: Sequence[int], minimum: float = torch.inf) -> None:
        self.ids = list(ids)
        self.minimum = minimum

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids [b, t]``: new tokens only; ``scores [b, vocab]``."""
        if input_ids.shape[1] >= self.minimum:
            return scores
        return scores.index_fill(1, torch.tensor(self.ids, dtype=torch.long, device=scores.device), -torch.inf)


def fixed_rules(generation: Generation, ends: StopCriteria) -> list[LogitsProcessor]:
    """Rules with and without sampling, in the order of transformers: penalty, n-grams, minimum length, bans."""
    result: list[LogitsProcessor] = []
    if generation.repetition_penalty != 1:
        penalty = RepetitionPenaltyLogitsProcessor(float(generation.repetition_penalty))
        result.append(AfterDummyToken(penalty, ends.bos))
    if generation.no_repeat_ngram_size:
        result.append(AfterDummyToken(NoRepeatNGramLogitsProcessor(generation.no_repeat_ngram_size), ends.bos))
    if generation.min_new_tokens:
        result.append(Forbid(ends.eos, generation.min_new_tokens))
    if ends.banned:
        result.append(Forbid(ends.banned))
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
    """A generator on the CPU for each row, all with the same seed; None: each seeded by the system."""
    generators = [torch.Generator() for _ in range(rows)]
    for generator in generators:
        generator.manual_seed(generator.seed() if seed is None else seed)  # ``seed()`` draws one
    return generators
