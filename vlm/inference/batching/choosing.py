"""The next token of many rows, each by its own options; in tensors over all rows wherever rows agree in kind.

What is chosen for a row equals what :mod:`vlm.inference.stopping`'s rules give for that row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.inference.batching.answer import TokenConstraint, TokenLogprob
from vlm.inference.batching.row import Noted, Row, history
from vlm.inference.stopping import fixed_rules, not_finite


@dataclass
class Choice:
    """The next token of a row; None: every token is forbidden, or there was an error."""

    token: int | None
    logprob: TokenLogprob | None = None
    error: Exception | None = None


class Chooser:
    """Keeps which tokens each answer has written (for the repetition penalty), and chooses the next ones."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None
        self._free: list[int] = []

    def begin(self, row: Row) -> None:
        """Before the first token of a row."""
        if row.generation.do_sample:
            row.generator = torch.Generator()
            seed = row.generation.seed
            row.generator.manual_seed(row.generator.seed() if seed is None else seed)

    def end(self, row: Row) -> None:
        """After the last token of a row."""
        if row.seen >= 0:
            self._free.append(row.seen)
            row.seen = -1

    def choose(self, rows: Sequence[Row], logits: Tensor) -> list[Choice]:
        """One choice per row of ``logits [n, vocab]`` in float32."""
        broken = [not math.isfinite(largest) for largest in logits.amax(-1).tolist()]
        if any(broken):
            logits = torch.where(torch.tensor(broken, device=logits.device)[:, None], 0.0, logits)
        errors: list[Exception | None] = [not_finite() if bad else None for bad in broken]
        scores = self._ruled(rows, logits, errors)
        stuck = [error is not None for error in errors]
        if scores is not logits:
            full = [largest == -math.inf for largest in scores.amax(-1).tolist()]
            stuck = [a or b for a, b in zip(stuck, full, strict=True)]
        tokens = scores.argmax(-1).tolist()
        sampled = [i for i, row in enumerate(rows) if row.generation.do_sample and not stuck[i]]
        if sampled:
            for i, token in zip(sampled, _drawn([rows[i] for i in sampled], scores[sampled]), strict=True):
                tokens[i] = token
        chosen = [Choice(None if stuck[i] else token, error=errors[i]) for i, token in enumerate(tokens)]
        self._note(rows, chosen)
        self._tell(rows, logits, chosen)
        return chosen

    def _ruled(self, rows: Sequence[Row], logits: Tensor, errors: list[Exception | None]) -> Tensor:
        """Scores after the rules of each row; ``logits`` itself if there are none. Errors of constraints are noted."""
        scores = logits
        if any(row.generation.repetition_penalty != 1 for row in rows):
            penalty = torch.tensor([row.generation.repetition_penalty for row in rows], device=scores.device)[:, None]
            seen = self._table(rows, logits)[torch.tensor([row.seen for row in rows], device=scores.device)]
            scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
        banned: tuple[list[int], list[int]] = ([], [])  # rows and tokens
        own: dict[int, Tensor] = {}
        for i, row in enumerate(rows):
            forbidden = row.ends.banned
            if len(row.answer.ids) < row.generation.min_new_tokens:
                forbidden += row.ends.eos
            banned[0].extend([i] * len(forbidden))
            banned[1].extend(forbidden)
            if row.generation.no_repeat_ngram_size:
                rule = fixed_rules(row.generation.replace(repetition_penalty=1.0, min_length=0), row.ends)[0]
                own[i] = rule(history(row, row.ends.bos, scores.device)[:, 1:], scores[i : i + 1])[0]
            if row.asking.constraint is not None:
                with Noted() as noted:
                    own[i] = _allowed(row.asking.constraint, own.get(i, scores[i]))
                errors[i] = errors[i] or noted.error
        if scores is logits and (own or banned[0]):
            scores = scores.clone()
        for i, value in own.items():
            scores[i] = value
        if banned[0]:
            scores[banned] = -torch.inf
        return scores

    def _table(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        """``[., vocab]`` bool: the tokens that each row has written, the begin id counted as one."""
        new = [row for row in rows if row.seen < 0]
        for row in new:
            if not self._free:
                old = self._seen
                size = 0 if old is None else len(old)
                self._seen = torch.zeros(max(8, 2 * size), logits.shape[1], dtype=torch.bool, device=logits.device)
                if old is not None:
                    self._seen[:size] = old
                self._free = list(range(len(self._seen) - 1, size - 1, -1))
            row.seen = self._free.pop()
            assert self._seen is not None
            self._seen[row.seen] = False
            self._seen[row.seen, [row.ends.bos, *row.answer.ids]] = True
        assert self._seen is not None
        return self._seen

    def _note(self, rows: Sequence[Row], chosen: Sequence[Choice]) -> None:
        at = [(row.seen, c.token) for row, c in zip(rows, chosen, strict=True) if row.seen >= 0 and c.token is not None]
        if at and self._seen is not None:
            where, tokens = zip(*at, strict=True)
            self._seen[list(where), list(tokens)] = True

    @staticmethod
    def _tell(rows: Sequence[Row], logits: Tensor, chosen: Sequence[Choice]) -> None:
        """Add the log-probabilities that were asked for."""
        asked = [i for i, row in enumerate(rows) if row.asking.logprobs is not None and chosen[i].token is not None]
        if not asked:
            return
        known = logits[asked].log_softmax(-1)
        most = min(max(rows[i].asking.logprobs or 0 for i in asked), known.shape[1])
        values, ids = known.topk(most, dim=-1) if most else (known[:, :0], known[:, :0])
        for k, (i, best, which) in enumerate(zip(asked, values.tolist(), ids.tolist(), strict=True)):
            token, count = chosen[i].token, rows[i].asking.logprobs or 0
            assert token is not None
            top = tuple(zip(map(int, which[:count]), best[:count], strict=True))
            chosen[i].logprob = TokenLogprob(token, float(known[k, token]), top)


def _allowed(constraint: TokenConstraint, scores: Tensor) -> Tensor:
    """A copy of ``scores [vocab]`` with ``-inf`` at the tokens that a constraint does not allow."""
    allowed = constraint.allowed().to(scores.device)
    scores = scores.clone()
    scores[: len(allowed)].masked_fill_(~allowed, -torch.inf)
    scores[len(allowed) :] = -torch.inf
    return scores


def _drawn(rows: Sequence[Row], scores: Tensor) -> list[int]:
    """One token per row of ``scores [n, vocab]``, each drawn with a generator of its own on the CPU."""
    scores = _warped(rows, scores)
    chances = scores.softmax(dim=-1).cpu()
    return [int(torch.multinomial(c, 1, generator=row.generator)) for row, c in zip(rows, chances, strict=True)]


def _warped(rows: Sequence[Row], scores: Tensor) -> Tensor:
    """Temperature, top-k, top-p, as transformers applies them."""
    options = [row.generation for row in rows]
    vocab, device = scores.shape[1], scores.device
    if any(o.temperature != 1 for o in options):
        scores = scores / torch.tensor([o.temperature for o in options], device=device)[:, None]
    kept = [min(o.top_k or vocab, vocab) for o in options]
    if min(kept) < vocab:
        largest = max(k for k in kept if k < vocab)
        order = scores.topk(largest, dim=-1).values
        at = torch.tensor([min(k, largest) - 1 for k in kept], device=device)[:, None]
        least = order.gather(1, at)
        off = torch.tensor([k == vocab for k in kept], device=device)[:, None]
        scores = scores.masked_fill((scores < least) & ~off, -torch.inf)
    if any(o.top_p < 1 for o in options):
        rest = torch.tensor([1 - o.top_p for o in options], device=device, dtype=scores.dtype)[:, None]
        order, index = _ascending(scores)
        dropped = (order.softmax(dim=-1).cumsum(dim=-1) <= rest) & (rest > 0)
        dropped[:, -1:] = False
        out = torch.zeros_like(scores, dtype=torch.bool).scatter(1, index, dropped)
        scores = scores.masked_fill(out, -torch.inf)
    return scores


def _ascending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The scores from low to high with their places, those that are out (minus infinity) left away where many are."""
    alive = int((scores != -torch.inf).sum(-1).amax())
    if alive > scores.shape[1] // 8:
        values, places = scores.sort(descending=False)
        return values, places
    values, places = scores.topk(alive, dim=-1)
    return values.flip(-1), places.flip(-1)
