"""Beam search and beam sampling by the rules with which the systems were published (transformers 4.28 to 4.30).

Later versions count lengths differently when a prompt is given as embeddings, hence an implementation here.

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
from vlm.inference.incremental import Prompt, decoder_of
from vlm.inference.stopping import StopCriteria, check_logits, ends_with, fixed_rules, row_generators, sampling_rules

INACTIVE_SCORE = -1e9
"""Initial score of all beams but the first, so that they do not all begin with the same token."""


@dataclass
class Hypotheses:
    """The best finished answers of one row.

    Attributes:
        beams: how many are kept.
        penalty: exponent of the length by which a score is divided.
        prefix: what counts as length before the first new token: the dummy token (1), or the prompt.
        current: the rule of current transformers: an answer counts its end, and only running beams can still win.
        found: (score, ids), worst first.
        done: whether no running beam can win any more.
    """

    beams: int
    penalty: float
    prefix: int
    current: bool = False
    found: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False

    def add(self, ids: list[int], total: float, length: int) -> None:
        """Keep an answer if it is among the best; its score is ``total / length ** penalty``."""
        score = total / (len(ids) if self.current else self.prefix + length) ** self.penalty
        if len(self.found) < self.beams or score > self.found[0][0]:
            self.found.append((score, ids))
            self.found.sort(key=lambda one: one[0])  # stable: of equal ones the later wins
            del self.found[: -self.beams]

    def close(self, best: float, length: int) -> None:
        """Set ``done`` when no running beam can beat the worst answer, by the published estimate."""
        if len(self.found) >= self.beams:
            self.done = self.done or self.found[0][0] >= best / (self.prefix + length) ** self.penalty


@dataclass
class BeamRow:
    """One row of the batch: its running beams and its finished answers.

    Attributes:
        best: the finished answers.
        running: the new tokens ``[t]`` of each beam, best first.
        totals: summed log probability of each beam.
        parents: the beam of the step before that each beam continues.
    """

    best: Hypotheses
    running: list[list[int]]
    totals: list[float] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def advance(self, candidates: Sequence[tuple[float, int, int]], length: int, ends: StopCriteria) -> None:
        """Choose the next beams.

        The end token, or the last token of a stop sequence, does not count as length: the dummy token takes its place.

        Args:
            candidates: (total, beam, token), best first. Those that end and are among the first k are kept as answers;
                forbidden ones (minus infinity) are passed over. A row without any other is done.
            length: new tokens of a beam after this step.
            ends: what ends a beam.
        """
        beams, done = len(self.running), self.best.done
        chosen: list[tuple[float, int, int]] = []
        allowed = [one for one in candidates if one[0] > -torch.inf]
        for rank, (total, beam, token) in enumerate([] if done else allowed):
            ids = [*self.running[beam], token]
            if token in ends.eos or ends_with(ids, ends.stops):
                if rank < beams:
                    self.best.add(ids, total, length - 1)
            elif len(chosen) < beams:
                chosen.append((total, beam, token))
        if not done and not chosen:  # nothing goes on: every beam has ended, or all its tokens are forbidden
            if not self.best.found:
                self.best.add(self.running[0], self.totals[0] if self.totals else 0.0, length - 1)
            self.best.done = True
        elif not done:
            self.best.close(chosen[0][0] if self.best.current and chosen else candidates[0][0], length)
        # fill up: the row is done, or nearly everything is forbidden or has ended
        chosen += [(0.0 if self.best.done else -torch.inf, 0, ends.pad)] * (beams - len(chosen))
        self.running = [[*self.running[beam], token] for _, beam, token in chosen]
        self.totals = [total for total, _, _ in chosen]
        self.parents = [beam for _, beam, _ in chosen]

    def answer(self) -> list[int]:
        """The best answer; beams still running at the end of the search compete."""
        for ids, total in zip([] if self.best.done else self.running, self.totals, strict=False):
            self.best.add(ids, total, len(ids))
        return self.best.found[-1][1]


def beam_search(llm: nn.Module, prompt: Prompt, generation: Generation, ends: StopCriteria) -> list[list[int]]:
    """The best answer of each row, with the end token or stop sequence that ended it.

    Args:
        llm: a transformers causal language model.
        prompt: the left-padded prompts ``[b, s]``.
        generation: the options; with ``do_sample`` candidates are drawn, each row with its own generator.
        ends: what ends a row.

    Raises:
        NotFiniteError: logits that are not numbers.
    """
    beams, device = generation.num_beams, prompt.embeds.device
    form = generation.length_penalty_form
    prefixes = prompt.mask.sum(1).tolist() if form == "prompt" else [int(form == "published")] * len(prompt.mask)
    found = [Hypotheses(beams, generation.length_penalty, prefix, form == "answer") for prefix in prefixes]
    rows = [BeamRow(best, [[] for _ in range(beams)]) for best in found]
    draw = BeamSampler(len(rows), generation.seed) if generation.do_sample else None
    keep = max(2, 1 + len(ends.eos))
    rules: Any = LogitsProcessorList(fixed_rules(generation, ends) + (sampling_rules(generation, keep) if draw else []))
    count = keep * beams
    scores = torch.full((len(rows), beams), INACTIVE_SCORE, device=device)
    scores[:, 0] = 0
    decoder = decoder_of(llm, prompt, generation.use_cache)
    with torch.inference_mode():
        logits = decoder.read(None).repeat_interleave(beams, 0)  # [b * k, vocab]
        decoder.repeat(beams)
        for length in range(1, generation.max_new_tokens + 1):
            check_logits(logits)
            history = torch.tensor([ids for row in rows for ids in row.running], dtype=torch.long, device=device)
            values = rules(history, logits.log_softmax(-1))
            totals = values.view(len(rows), beams, -1) + scores[..., None]  # [b, k, vocab]
            total, place = draw(totals.flatten(1), count) if draw else totals.flatten(1).topk(count)
            beam, token = place // logits.shape[-1], place % logits.shape[-1]
            for row, *candidates in zip(rows, total.tolist(), beam.tolist(), token.tolist(), strict=True):
                row.advance(list(zip(*candidates, strict=True)), length, ends)
            if length == generation.max_new_tokens or all(row.best.done for row in rows):
                break
            scores = torch.tensor([row.totals for row in rows], device=device)
            came_from = [r * beams + beam for r, row in enumerate(rows) for beam in row.parents]
            decoder.reorder(torch.tensor(came_from, device=device))
            logits = decoder.read(torch.tensor([ids[-1] for row in rows for ids in row.running], device=device))
    return [row.answer() for row in rows]


class BeamSampler:
    """Beam sampling: candidates drawn without replacement from all beams together, by their summed scores.

    As in transformers 5, temperature, top-k and top-p change the scores of one token, which are then added up. The
    published versions changed the sums, which were divided by the temperature again at every token, without bound.
    """

    def __init__(self, rows: int, seed: int | None) -> None:
        self.generators = row_generators(rows, seed)

    def __call__(self, totals: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Totals and places (``beam * vocab + token``) ``[b, count]`` of the candidates of ``totals [b, k * vocab]``.

        The best come first.
        """
        chances = totals.double().softmax(-1).nan_to_num(0.0).cpu()  # NaN: everything is forbidden
        places = torch.stack([_draw(c, count, g) for c, g in zip(chances, self.generators, strict=True)])
        places = places.to(totals.device)
        total = totals.gather(1, places)
        order = total.argsort(dim=1, descending=True, stable=True)
        return total.gather(1, order), places.gather(1, order)


def _draw(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` indices into ``chances [n]``; where fewer have a chance, the lowest other indices follow."""
    possible = min(count, int((chances > 0).sum()))
    drawn = [torch.multinomial(chances, possible, generator=generator)] if possible else []
    return torch.cat([*drawn, (chances <= 0).nonzero()[: count - possible, 0]])
