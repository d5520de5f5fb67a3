"""From prompt embeddings to token ids: greedy and sampled token by token, beams through transformers.

Shapes: b rows, s prompt positions, t new tokens, d width.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlm.inference.generation import Generation
from vlm.inference.stopping import (
    Ban,
    NoEarlyEnd,
    NoRepeatNGram,
    PublishedRepetitionPenalty,
    RowStop,
    Stops,
    cut_after_stop,
    ends_with,
)
from vlm.models.inserts.base import ARGUMENT, InsertData
from vlm.models.precision import autocast


@dataclass
class Prompt:
    """Left-padded prompts: ``embeds [b, s, d]`` (zeros at padding), ``mask [b, s]`` int64; what inserts read."""

    embeds: Tensor
    mask: Tensor
    inserts: InsertData | None = None

    @property
    def positions(self) -> Tensor:
        """``[b, s]``: 0.. from the first real position of each row; 0 at padding."""
        return (self.mask.cumsum(dim=1) - 1).clamp(min=0)


@dataclass(frozen=True)
class Ends:
    """What ends a row: the ids that end it natively, the stop sequences, the ids used around them, and banned ids."""

    eos: tuple[int, ...]
    bos: int
    pad: int
    stops: Stops = ()
    banned: tuple[int, ...] = ()


def decode(
    llm: nn.Module, prompt: Prompt, generation: Generation, ends: Ends, dtype: torch.dtype = torch.float32
) -> list[list[int]]:
    """New token ids of each row, with the end token or stop sequence that ended it.

    Args:
        llm: a transformers causal language model.
        prompt: the left-padded prompts.
        generation: the options; ``num_beams`` above 1 goes through transformers' beam search.
        ends: what ends a row.
        dtype: autocast dtype of the language model.
    """
    if generation.num_beams > 1:
        with autocast(prompt.embeds.device, dtype):
            return _beams(llm, prompt, generation, ends)
    rows: list[list[int]] = [[] for _ in range(len(prompt.embeds))]
    for step in steps(llm, prompt, generation, ends, dtype):
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
    return rows


def steps(
    llm: nn.Module, prompt: Prompt, generation: Generation, ends: Ends, dtype: torch.dtype = torch.float32
) -> Iterator[list[int | None]]:
    """Yields the new token of each row, one list per step; None for a row that has ended."""
    processors = _processors(generation, ends)
    sampler = Sampler(len(prompt.embeds), generation.seed) if generation.do_sample else None
    reader = Reader(llm, prompt, generation.use_cache)
    rows: list[list[int]] = [[] for _ in range(len(prompt.embeds))]
    done = [False] * len(rows)
    history = torch.zeros(len(rows), 0, dtype=torch.long, device=prompt.embeds.device)
    tokens: Tensor | None = None
    for _ in range(generation.max_new_tokens):
        with torch.inference_mode():
            with autocast(prompt.embeds.device, dtype):
                logits = reader.read(tokens)
            scores = processors(history, logits)
            tokens = sampler(scores) if sampler else scores.argmax(dim=-1)
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


class Reader:
    """Runs the language model over the prompt, then over one token per row at a time.

    With ``use_cache`` the keys and values of earlier positions are kept; without, everything is read again.
    """

    def __init__(self, llm: nn.Module, prompt: Prompt, use_cache: bool) -> None:
        self.llm: Any = llm
        self.embeds: Tensor | None = prompt.embeds
        self.mask = prompt.mask
        self.padded = bool((prompt.mask == 0).any())
        self.positions = prompt.positions
        self.use_cache = use_cache
        self.inserts = prompt.inserts
        self.cache: Any = None
        accepts = inspect.signature(llm.forward).parameters
        self.extra = {"logits_to_keep": 1} if "logits_to_keep" in accepts or "kwargs" in accepts else {}
        self.takes_positions = "position_ids" in accepts or "kwargs" in accepts

    def read(self, tokens: Tensor | None) -> Tensor:
        """Append ``tokens [b]`` (None the first time); returns the next token's logits ``[b, vocab]`` in float32."""
        inputs: dict[str, Any] = {}
        if tokens is not None:
            if self.padded:
                self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
            last = self.positions[:, -1:] + 1
            self.positions = last if self.use_cache else torch.cat([self.positions, last], dim=1)
            new = self.llm.get_input_embeddings()(tokens[:, None])
            self.embeds = new if self.use_cache else torch.cat([self._kept(), new.to(self._kept().dtype)], dim=1)
            if self.inserts is not None:
                self.inserts = self.inserts.step() if self.use_cache else self.inserts.extended()
        if self.takes_positions:
            inputs["position_ids"] = self.positions
        if self.inserts is not None:
            inputs[ARGUMENT] = self.inserts
        out = self.llm(
            inputs_embeds=self._kept(),
            attention_mask=self.mask if self.padded else None,  # without one, no mask has to be built
            past_key_values=self.cache,
            use_cache=self.use_cache,
            **inputs,
            **self.extra,
        )
        self.cache = out.past_key_values if self.use_cache else None
        return out.logits[:, -1].float()

    def _kept(self) -> Tensor:
        assert self.embeds is not None
        return self.embeds


class Sampler:
    """Draws one token per row. Each row has its own generator on the CPU, started from the same seed.

    So a row's text depends on neither the device nor the other rows of the batch.
    """

    def __init__(self, rows: int, seed: int | None) -> None:
        self.generators = [torch.Generator() for _ in range(rows)]
        for generator in self.generators:
            if seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed)

    def __call__(self, scores: Tensor) -> Tensor:
        """``scores [b, vocab]`` -> ``[b]``."""
        chances = scores.softmax(dim=-1).cpu()
        drawn = [torch.multinomial(c, 1, generator=g) for c, g in zip(chances, self.generators, strict=True)]
        return torch.cat(drawn).to(scores.device)


def _fixed(generation: Generation, ends: Ends) -> list[LogitsProcessor]:
    found: list[LogitsProcessor] = []
    if generation.repetition_penalty != 1:
        found.append(PublishedRepetitionPenalty(generation.repetition_penalty, ends.bos))
    if generation.no_repeat_ngram_size:
        found.append(NoRepeatNGram(generation.no_repeat_ngram_size, ends.bos))
    if generation.min_new_tokens:
        found.append(NoEarlyEnd(generation.min_new_tokens, ends.eos))
    if ends.banned:
        found.append(Ban(ends.banned))
    return found


def _processors(generation: Generation, ends: Ends) -> Any:
    """In the order of transformers: penalty, n-grams, minimum length, temperature, top-k, top-p."""
    found = _fixed(generation, ends)
    if generation.do_sample:
        if generation.temperature != 1:
            found.append(TemperatureLogitsWarper(generation.temperature))
        if generation.top_k:
            found.append(TopKLogitsWarper(generation.top_k))
        if generation.top_p < 1:
            found.append(TopPLogitsWarper(generation.top_p))
    return LogitsProcessorList(found)


def _beams(llm: Any, prompt: Prompt, generation: Generation, ends: Ends) -> list[list[int]]:
    """Beam search (or beam sampling) by transformers; its random numbers are drawn apart from the caller's."""
    sampling = {"temperature": generation.temperature, "top_k": generation.top_k, "top_p": generation.top_p}
    config = GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        num_beams=generation.num_beams,
        length_penalty=generation.length_penalty,
        do_sample=generation.do_sample,
        eos_token_id=list(ends.eos),
        bos_token_id=ends.bos,
        pad_token_id=ends.pad,
        use_cache=generation.use_cache,
        repetition_penalty=1.0,  # ours counts differently
        **(sampling if generation.do_sample else {}),
    )
    devices = [prompt.embeds.device] if prompt.embeds.device.type != "cpu" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices):
        if generation.do_sample:
            torch.manual_seed(generation.seed if generation.seed is not None else torch.Generator().seed())
        out = carrying(llm, prompt.inserts, generation.num_beams).generate(
            inputs_embeds=prompt.embeds,
            attention_mask=prompt.mask,
            generation_config=config,
            logits_processor=LogitsProcessorList(_fixed(generation, ends)),
            stopping_criteria=StoppingCriteriaList([RowStop(ends.stops)] if ends.stops else []),
        )
    closing = tuple((e,) for e in ends.eos) + ends.stops
    return [cut_after_stop(row, closing) for row in out.tolist()]


def carrying(llm: Any, inserts: InsertData | None, beams: int) -> Any:
    """``llm`` as ``generate`` of transformers may call it: each call gets the data of its positions.

    A copy that shares every module, so that calls of other threads do not meet this one's data.
    """
    if inserts is None:
        return llm
    data = inserts.moved(lambda value: value.repeat_interleave(beams, 0))
    size = next((value.shape[1] for value in data.tokens.values()), 0)
    following = data.step()

    def forward(*args: Any, **kwargs: Any) -> Any:
        embeds, past = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        count = (kwargs["input_ids"] if embeds is None else embeds).shape[1]
        begin = 0 if past is None else past.get_seq_length()
        own = data.moved(lambda value: value[:, begin : begin + count])
        for _ in range(begin + count - max(begin, size)):
            own = InsertData(
                {name: torch.cat([value, following.tokens[name]], 1) for name, value in own.tokens.items()}, own.shared
            )
        return llm.forward(*args, **{ARGUMENT: own}, **kwargs)

    bound = copy.copy(llm)
    bound.forward = functools.wraps(llm.forward)(forward)
    return bound
