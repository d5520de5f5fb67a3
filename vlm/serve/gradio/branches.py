"""The questions of one visitor as a tree: a question asked in another way begins a branch, and the others stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm.common.errors import UserError
from vlm.common.types import Image, Message, Video

if TYPE_CHECKING:
    from vlm.inference.conversation.record import Record
    from vlm.inference.generation import Generation
    from vlm.serve.feedback.record import Rating

Medium = Image | Video

TURNS = 100
"""Questions that are kept at most, over all branches."""
MEDIA = 16
"""Images and videos that are kept at most, over all branches; their pixels are in memory."""


@dataclass
class Reply:
    """One model's answer; all but its text is there once it is complete.

    Attributes:
        text: what there is of it.
        record: the numbers of its writing.
        given: what the model read, the question last, pixels decoded.
        generation: how it was written.
        rating: what the visitor thinks of it.
    """

    text: str = ""
    record: Record | None = None
    given: tuple[Message, ...] = ()
    generation: Generation | None = None
    rating: Rating | None = None


@dataclass(eq=False)
class Turn:
    """A question with the answers of the models that it was put to.

    Attributes:
        text: the question.
        files: its images and videos, as paths of uploads.
        before: the turn that it follows; None: it begins a conversation.
        origin: the turn that was shown when it was asked, to return to if it is taken back.
        asked: model -> the question as that model is given it, pixels decoded.
        replies: model -> answer.
        faults: model -> why it has no answer.
    """

    text: str
    files: tuple[Medium, ...]
    before: Turn | None = None
    origin: Turn | None = None
    asked: dict[str, Message] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    faults: dict[str, UserError] = field(default_factory=dict)

    @property
    def path(self) -> list[Turn]:
        """The turns of its conversation, this one last."""
        return [*(self.before.path if self.before is not None else []), self]


class Branches:
    """All turns of a visitor, and the place that is shown.

    Attributes:
        turns: in the order in which they were asked.
        here: the last turn that is shown; None: an empty conversation.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.here: Turn | None = None

    @property
    def shown(self) -> list[Turn]:
        """The turns from the beginning of the conversation to ``here``."""
        return self.here.path if self.here is not None else []

    @property
    def ends(self) -> list[Turn | None]:
        """Where one can be: the last turn of every branch, and ``here``."""
        inner = {id(turn.before) for turn in self.turns}
        found: list[Turn | None] = [turn for turn in self.turns if id(turn) not in inner]
        return found if self.here in found or not found else [*found, self.here]

    @property
    def place(self) -> tuple[int, int]:
        """Number of the branch that is shown, from 1, and how many there are."""
        return (self.ends.index(self.here) + 1 if self.turns else 1), max(len(self.ends), 1)

    def go(self, step: int) -> None:
        """Show the next branch, or the one before for -1; at an end nothing changes."""
        ends = self.ends
        if ends:
            self.here = ends[min(max(ends.index(self.here) + step, 0), len(ends) - 1)]

    def add(self, turn: Turn) -> None:
        """Add a turn and show it; the oldest branches make room if there are more questions or media than are kept."""
        turn.origin = self.here
        for oldest in self._oldest(turn):
            self._drop(oldest)
        self.turns.append(turn)
        self.here = turn

    def fits(self, turn: Turn) -> bool:
        """Whether a turn and those before it are within the limits, so that ``add`` finds room."""
        return len(turn.path) <= TURNS and _media(turn.path) <= MEDIA

    def take_back(self) -> None:
        """Forget the turn that is shown, and show what was shown before it was asked."""
        if (turn := self.here) is not None:
            self.turns.remove(turn)
            self.here = turn.origin if turn.origin in self.turns else turn.before

    def _oldest(self, turn: Turn) -> Iterator[Turn]:
        """Conversations and branches to drop, until there is room for ``turn``."""
        kept = turn.path
        while len(self.turns) >= TURNS or _media([*self.turns, turn]) > MEDIA:
            inner = {id(t.before) for t in self.turns}
            last = [t for t in self.turns if id(t) not in inner and t not in kept]
            if not last:
                return
            yield last[0]

    def _drop(self, turn: Turn) -> None:
        self.turns.remove(turn)
        for other in self.turns:
            other.origin = None if other.origin is turn else other.origin
        if self.here is turn:
            self.here = turn.before


def _media(turns: list[Turn]) -> int:
    """Images and videos of turns; those that a question asked again shares with the first are counted once."""
    return len({id(medium) for turn in turns for medium in turn.files})
