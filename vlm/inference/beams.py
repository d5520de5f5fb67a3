"""Beam search and beam sampling by the rules with which the systems were published (transformers 4.28 to 4.30).

Later versions count lengths differently when a prompt is given as embeddings, so the rules stand here.

Shapes: b rows, k beams, s prompt positions, t new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from vlm.inference.generation import Generation
from vlm.inference.incremental import IncrementalDecoder, Prompt
from vlm.inference.stopping import StopCriteria, ends_with, fixed_rules, sampling_rules

INACTIVE_SCORE = -1e9
"""Score with which all beams but the first begin, so that they do not all begin with the same token."""


@dataclass
class Hypotheses:
    """The best finished answers of one row.

    prefix    what counts as length before the first new token: the dummy token (1), or the prompt
    current   the rule of current transformers: an answer counts its end, and only running beams can still win
    """

    beams: int
    penalty: float
    prefix: int
    found: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False
    current: bool = False

    def add(self, ids: list[int], total: float, length: int) -> None:
        """Keep an answer if it is among the best; its score is ``total / length ** penalty``."""
        score = total / (len(ids) if self.current else self.prefix + length) ** self.penalty
        if len(self.found) < self.beams or score > self.worst:
            self.found.append((score, ids))
            self.found.sort(key=lambda one: one[0])  # stable: of equal ones the later wins
            del self.found[: -self.beams]

    @property
    def worst(self) -> float:
        """The lowest score kept."""
        return self.found[0][0]

    def close(self, best: float, length: int) -> None:
        """Set ``done`` when no running beam can beat the worst answer, by the published estimate."""
        full = len(self.found) >= self.beams
        self.done = self.done or (full and self.worst >= best / (self.prefix + length) ** self.penalty)


def beam_search(llm: nn.Module, prompt: Prompt, generation: Generation, ends: StopCriteria) -> list[list[int]]:
    """The best answer of each row, with the end token or stop sequence that ended it.

    Args:
        llm: a transformers causal language model.
        prompt: the left-padded prompts ``[b, s]``.
        generation: the options; with ``do_sample`` candidates are drawn, each row with its own generator.
        ends: what ends a row.
    """
    rows, beams = len(prompt.embeds), generation.num_beams
    device = prompt.embeds.device
    draw = BeamSampler(rows, generation, ends) if generation.do_sample else None
    rules: Any = LogitsProcessorList(fixed_rules(generation, ends))
    current = generation.length_penalty_form == "answer"
    kept = [Hypotheses(beams, generation.length_penalty, n, current=current) for n in _prefixes(prompt, generation)]
    running: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(rows)]
    scores = torch.full((rows, beams), 0.0 if draw else INACTIVE_SCORE, device=device)
    scores[:, 0] = 0
    reader = IncrementalDecoder(llm, prompt, generation.use_cache)
    expected = max(2, 1 + len(ends.eos)) * beams
    tokens: Tensor | None = None
    with torch.inference_mode():
        for length in range(1, generation.max_new_tokens + 1):
            logits = reader.read(tokens)
            if tokens is None:
                reader.repeat(beams)
                logits = logits.repeat_interleave(beams, 0)
            history = torch.tensor([ids for row in running for ids in row], dtype=torch.long, device=device)
            values = rules(history.view(rows * beams, -1), logits.log_softmax(-1))
            totals = values.view(rows, beams, -1) + scores[..., None]
            total, place = draw(totals, history, expected) if draw else totals.flatten(1).topk(expected)
            choices = [
                _advance(kept[r], running[r], total[r].tolist(), place[r].tolist(), logits.shape[-1], length, ends)
                for r in range(rows)
            ]
            if all(row.done for row in kept):
                break
            scores = torch.tensor([[c.total for c in row] for row in choices], device=device)
            tokens = torch.tensor([c.token for row in choices for c in row], device=device)
            came = [r * beams + c.beam for r, row in enumerate(choices) for c in row]
            reader.reorder(torch.tensor(came, device=device))
            running = [[running[r][c.beam] + [c.token] for c in row] for r, row in enumerate(choices)]
    for row, texts, totals_ in zip(kept, running, scores.tolist(), strict=True):
        for ids, one in zip(texts if not row.done else [], totals_, strict=False):
            row.add(ids, one, len(ids))
    return [row.found[-1][1] for row in kept]


@dataclass(frozen=True)
class BeamStep:
    """A beam of the next step: the beam it continues, its new token, its summed log probability."""

    beam: int
    token: int
    total: float


def _advance(
    kept: Hypotheses,
    running: Sequence[list[int]],
    totals: Sequence[float],
    places: Sequence[int],
    vocab: int,
    length: int,
    ends: StopCriteria,
) -> list[BeamStep]:
    """One row's next beams out of its candidates, best first; ended ones among the first ``beams`` are kept.

    The end token, or the last token of a stop sequence, does not count as length: the dummy token takes its place.
    """
    if kept.done:
        return [BeamStep(0, ends.pad, 0.0)] * kept.beams
    chosen: list[BeamStep] = []
    for rank, (total, place) in enumerate(zip(totals, places, strict=True)):
        beam, token = divmod(place, vocab)
        ids = [*running[beam], token]
        if token in ends.eos or ends_with(ids, ends.stops):
            if rank < kept.beams:
                kept.add(ids, total, length - 1)
        elif len(chosen) < kept.beams:
            chosen.append(BeamStep(beam, token, total))
    kept.close(chosen[0].total if kept.current and chosen else totals[0], length)
    missing = kept.beams - len(chosen)  # nearly everything is forbidden or ended
    return chosen + [BeamStep(0, ends.pad, -torch.inf)] * missing


def _prefixes(prompt: Prompt, generation: Generation) -> list[int]:
    if generation.length_penalty_form == "prompt":
        return prompt.mask.sum(1).tolist()
    return [0 if generation.length_penalty_form == "answer" else 1] * len(prompt.mask)


class BeamSampler:
    """Beam sampling: candidates drawn without replacement from what top-k and top-p leave of all beams together."""

    def __init__(self, rows: int, generation: Generation, ends: StopCriteria) -> None:
        self.rules: Any = LogitsProcessorList(sampling_rules(generation, keep=max(2, 1 + len(ends.eos))))
        self.generators = [torch.Generator() for _ in range(rows)]
        for generator in self.generators:
            if generation.seed is None:
                generator.seed()
            else:
                generator.manual_seed(generation.seed)

    def __call__(self, totals: Tensor, history: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """``totals [b, k, vocab]`` -> totals and places ``[b, wanted]`` of the candidates, best first."""
        rows, beams, vocab = totals.shape
        left = self.rules(history.view(rows * beams, -1), totals.flatten(0, 1)).view(rows, beams * vocab)
        chances = left.double().softmax(-1).cpu()
        places = torch.stack([_draw(c, wanted, g) for c, g in zip(chances, self.generators, strict=True)])
        places = places.to(totals.device)
        total = left.gather(1, places)
        order = total.argsort(dim=1, descending=True, stable=True)
        return total.gather(1, order), places.gather(1, order)


def _draw(chances: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """``wanted`` indices; when fewer have a chance, the others follow from the lowest index on."""
    possible = int((chances > 0).sum())
    drawn = torch.multinomial(chances, min(wanted, possible), generator=generator)
    if possible >= wanted:
        return drawn
    rest = (chances <= 0).nonzero()[: wanted - possible, 0]
    return torch.cat([drawn, rest])
