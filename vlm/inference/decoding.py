"""From prompt embeddings to token ids: greedy, sampled, or with beams.

Shapes: b rows, s prompt positions, t new tokens, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vlm.inference.beams import beam_search
from vlm.inference.generation import Generation
from vlm.inference.incremental import Prompt, decoder_of
from vlm.inference.stopping import StopCriteria, check_logits, ends_with, row_generators, score_rules
from vlm.models.precision import autocast

__all__ = ["StopCriteria", "Prompt", "decode", "steps"]


def decode(
    llm: nn.Module, prompt: Prompt, generation: Generation, ends: StopCriteria, dtype: torch.dtype = torch.float32
) -> list[list[int]]:
    """New token ids of each row, including the end token or stop sequence.

    Args:
        llm: a transformers causal language model.
        prompt: the left-padded prompts.
        generation: the options.
        ends: what ends a row.
        dtype: autocast dtype of the language model.

    Raises:
        NotFiniteError: logits that are not numbers.
    """
    if generation.num_beams > 1:
        with autocast(prompt.embeds.device, dtype):
            return beam_search(llm, prompt, generation, ends)
    written = zip(*steps(llm, prompt, generation, ends, dtype), strict=True)
    return [[token for token in row if token is not None] for row in written]


def steps(
    llm: nn.Module, prompt: Prompt, generation: Generation, ends: StopCriteria, dtype: torch.dtype = torch.float32
) -> Iterator[list[int | None]]:
    """Yield the new token of each row at each step; None for a row that has ended, or whose every token is forbidden.

    Raises NotFiniteError: see :func:`decode`.
    """
    processors = score_rules(generation, ends)
    generators = row_generators(len(prompt.embeds), generation.seed)
    decoder = decoder_of(llm, prompt, generation.use_cache)
    rows: list[list[int]] = [[] for _ in range(len(prompt.embeds))]
    done = [False] * len(rows)
    history = torch.zeros(len(rows), 0, dtype=torch.long, device=prompt.embeds.device)
    tokens: Tensor | None = None
    for _ in range(generation.max_new_tokens):
        with torch.inference_mode():
            with autocast(prompt.embeds.device, dtype):
                logits = decoder.read(tokens)
            check_logits(logits)
            scores = processors(history, logits)
            stuck = (scores.amax(-1) == -torch.inf).tolist() if processors else ()
            if any(stuck):
                done = [a or b for a, b in zip(done, stuck, strict=True)]
                scores = torch.where(torch.tensor(stuck, device=scores.device)[:, None], 0.0, scores)
            tokens = _sampled(scores, generators) if generation.do_sample else scores.argmax(dim=-1)
            if any(done):
                tokens = tokens.masked_fill(torch.tensor(done, device=tokens.device), ends.pad)
            if processors:
                history = torch.cat([history, tokens[:, None]], dim=1)
        step: list[int | None] = []
        for i, token in enumerate(tokens.tolist()):
            step.append(None if done[i] else token)
            if not done[i]:
                rows[i].append(token)
                done[i] = token in ends.eos or ends_with(rows[i], ends.stops)
        yield step
        if all(done):
            return


def _sampled(scores: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """``scores [b, vocab]`` -> ``[b]``: one token per row, each drawn with a generator of its own on the CPU.

    The text of a row then depends neither on the device nor on the other rows.
    """
    chances = scores.softmax(dim=-1).cpu()
    drawn = [torch.multinomial(c, 1, generator=g) for c, g in zip(chances, generators, strict=True)]
    return torch.cat(drawn).to(scores.device)
