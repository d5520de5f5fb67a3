"""The numbers of one answer of a conversation: how long it took, and how many positions."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from vlm.inference.batching.answer import Answer, Finish

Value = TypeVar("Value")


@dataclass(frozen=True)
class Record:
    """What is known of an answer besides its text.

    Attributes:
        finish: why it ended; ``cancelled`` where somebody stopped it.
        prompt: positions of the prompt, visual tokens included.
        cached: of these, found in the prefix cache.
        written: tokens of the answer.
        to_first: seconds from the question to the first token; None: there was none, or it is not known.
        seconds: from the question to the end.
    """

    finish: Finish
    prompt: int
    cached: int
    written: int
    to_first: float | None
    seconds: float

    @classmethod
    def of(cls, answer: Answer) -> Record:
        """The numbers of an answer as it is now; one that nobody waits for any longer was cancelled."""
        times, usage = answer.times, answer.usage
        ended = times.ended or time.monotonic()
        to_first = None if times.first is None else times.first - times.asked
        finish = answer.finish or "cancelled"
        return cls(finish, usage.prompt, usage.cached, usage.written, to_first, ended - times.asked)

    @property
    def positions(self) -> int:
        """Positions of the context that prompt and answer take."""
        return self.prompt + self.written

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of writing after the first token; None: fewer than two tokens, or the first one's time is not known."""
        if self.to_first is None or self.written < 2 or self.seconds <= self.to_first:
            return None
        return (self.written - 1) / (self.seconds - self.to_first)


class Beside(Generic[Value]):
    """Values that are kept for objects as long as these live; equal objects have values of their own."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[weakref.ref[object], Value]] = {}

    def __setitem__(self, key: object, value: Value) -> None:
        number, held = id(key), self._held
        held[number] = (weakref.ref(key, lambda _: held.pop(number, None)), value)

    def get(self, key: object) -> Value | None:
        """The value of this very object, or None."""
        found = self._held.get(id(key))
        return found[1] if found is not None and found[0]() is key else None
