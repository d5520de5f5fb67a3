"""One answer being written, as the engine room sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm.inference.batching.answer import Answer, Asking, Finish
from vlm.inference.stopping import ends_with

if TYPE_CHECKING:
    from vlm.inference.batching.lookup import Index
    from vlm.inference.batching.prefixes import Cut
    from vlm.inference.generation import Generation
    from vlm.inference.incremental import Prompt
    from vlm.inference.stopping import StopCriteria
    from vlm.models.inserts.base import InsertData


@dataclass(eq=False)
class Row:
    """A question whose answer is waited for.

    Attributes:
        prompt: one row without padding; dropped when it has been read.
        ids: of the prompt, a placeholder for each medium.
        number: order of arrival.
        done: positions of the prompt that have been read.
        slot: where its keys and values are; -1: nowhere yet.
        cuts: where its prompt may be divided.
        keys: of the prefix cache, for the cuts that can be kept.
        age: of that cache, when the row began.
        next_position: of the next written token.
        after: data of the inserts at written tokens.
        seen: index of its row in the table of written tokens; -1: none is needed.
        alone: what reads it if it cannot share a step.
        index: of the tokens read and written, for guesses.
    """

    answer: Answer
    asking: Asking
    generation: Generation
    ends: StopCriteria
    prompt: Prompt | None
    ids: list[int]
    number: int = 0
    done: int = 0
    slot: int = -1
    cuts: list[Cut] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    age: int = 0
    next_position: int = 0
    after: InsertData | None = None
    seen: int = -1
    alone: Any = None
    index: Index | None = None
    generator: torch.Generator | None = None

    @property
    def length(self) -> int:
        """Positions of the prompt."""
        return self.answer.usage.prompt

    @property
    def held(self) -> int:
        """Positions whose keys and values are known: those read of the prompt, and the written tokens but the last."""
        return self.done if self.prompt is not None else self.length + max(0, len(self.answer.ids) - 1)

    @property
    def need(self) -> int:
        """Positions that it may come to take."""
        return self.length + self.generation.max_new_tokens

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        limit = self.asking.timeout
        return limit is not None and time.monotonic() > self.answer.times.asked + limit

    def over(self) -> Finish | None:
        """Why the answer must end before its next token, if it must."""
        if not self.answer.is_wanted:
            return "cancelled"
        return "timeout" if self.late else None

    def add(self, token: int, logprob: Any = None) -> Finish | None:
        """Add a written token; why the answer ends with it, if it does."""
        cut = self.answer.push(token, logprob)
        if self.asking.constraint is not None:
            self.asking.constraint.accept(token)
        if cut or token in self.ends.eos or ends_with(self.answer.ids, self.ends.stops):
            return "stop"
        return "length" if len(self.answer.ids) >= self.generation.max_new_tokens else None


class Noted:
    """An error within the block is for somebody else, such as who asked: it is noted and goes no further."""

    error: Exception | None = None

    def __enter__(self) -> Noted:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self.error = error
        return self.error is not None


def history(row: Row, bos: int, device: torch.device) -> Tensor:
    """``[1, t + 1]``: what the rules of ``stopping`` read, the written tokens after a begin id."""
    return torch.tensor([[bos, *row.answer.ids]], dtype=torch.long, device=device)
