"""Where the words of a conversation are in the text that a chat template made of them.

A template is a program, so its text is searched, not predicted. The conversation is rendered as it is, and once more
with sentinels in it: characters that it does not contain, around each answer and around each control token in
somebody's words. The second text without its sentinels must be the first; then their places are right. Those of an
answer are inside its white space, because a template may strip that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from vlm.common.errors import PromptError
from vlm.common.types import Role
from vlm.processors.templates.base import Medium

PRIVATE = range(0xF0000, 0xFFFFE)
"""Code points of a private use area, the sentinels."""
BLANKS = "\u2009\u2008\u2006\u2005\u2004\u2003\u2002\u205f\u3000"
"""White space that is rare in text: sentinels which a template strips together with an answer's own white space."""

Range = tuple[int, int]


@dataclass(frozen=True)
class Turn:
    """A message for a template: texts and media in order, neighbouring texts joined."""

    role: Role
    pieces: tuple[str | Medium, ...]

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(p for p in self.pieces if isinstance(p, str))

    def mapped(self, change: Callable[[str], str]) -> Turn:
        """With every text changed."""
        return replace(self, pieces=tuple(change(p) if isinstance(p, str) else p for p in self.pieces))


@dataclass
class Located:
    """A rendered text, with ranges ``[start, end)``: control tokens in somebody's words, and the answers."""

    text: str
    literal: list[Range] = field(default_factory=list)
    answers: list[Range] = field(default_factory=list)


Render = Callable[[Sequence[Turn]], str]


def locate(turns: Sequence[Turn], render: Render, control: re.Pattern[str], answers: bool) -> Located:
    """The text of a conversation with the places in it.

    Args:
        turns: the conversation.
        render: the template.
        control: finds control tokens.
        answers: also find what the assistant wrote.

    Raises PromptError: the template fails, or does not write the words as they are.
    """
    text = render(turns)
    if not any(control.search(turn.text) for turn in turns) and not answers:
        return Located(text)
    return _Search(turns, render, control, text).run(answers)


class _Search:
    """One call of :func:`locate`."""

    def __init__(self, turns: Sequence[Turn], render: Render, control: re.Pattern[str], text: str) -> None:
        self.turns, self.render, self.control, self.text = turns, render, control, text
        known = set(text).union(*(turn.text for turn in turns))
        self._private = (c for c in map(chr, PRIVATE) if c not in known)
        self._blank = [c for c in BLANKS if c not in known][:2]

    def run(self, answers: bool) -> Located:
        guard = next(self._private), next(self._private)
        numbers = [k for k, turn in enumerate(self.turns) if answers and turn.role == "assistant"]
        around = {k: (next(self._private), next(self._private)) for k in numbers}
        sentinels = "".join(chain(guard, *around.values()))
        for spared in ((), ("assistant",)):  # an answer's control tokens may be what a template looks for

            def change(k: int, text: str, spared: Sequence[str] = spared) -> str:
                if self.turns[k].role not in spared:
                    text = self.control.sub(lambda found: guard[0] + found.group() + guard[1], text)
                return _around(text, *around[k]) if k in around else text

            if (found := self._places(change, sentinels)) is not None:
                break
        else:
            raise PromptError(
                "the chat template changes the words of the conversation, so that the answers in it cannot be found",
                fix="set model.template.chat_template to a template that writes them as they are",
            )
        literal = list(zip(found[guard[0]], found[guard[1]]))
        return Located(self.text, literal, [self._answer(k, *map(found.get, around[k])) for k in numbers])

    def _places(self, change: Callable[[int, str], str], sentinels: str) -> dict[str, list[int]] | None:
        """Sentinel -> where it is in the text, of a conversation with changed texts; None if the text is another."""
        turns = [turn.mapped(lambda text, k=k: change(k, text)) for k, turn in enumerate(self.turns)]  # type: ignore[misc]
        try:
            rendered = self.render(turns)
        except PromptError:
            return None
        places: dict[str, list[int]] = {sentinel: [] for sentinel in sentinels}
        pieces = re.split(f"([{sentinels}])", rendered)
        length = 0
        for piece, sentinel in zip(pieces[::2], [*pieces[1::2], ""]):
            length += len(piece)
            if sentinel:
                places[sentinel].append(length)
        return places if "".join(pieces[::2]) == self.text else None

    def _answer(self, number: int, starts: list[int] | None, ends: list[int] | None) -> Range:
        """The range of an answer, from the places of the sentinels at its first and last letter."""
        starts = starts or self._first_written(number)
        if not (starts and ends and len(starts) == len(ends) == 1):
            times = "more than once" if ends and len(ends) > 1 else "nowhere"
            raise PromptError(
                f"the chat template writes an answer {times}: {self.turns[number].text!r:.80}",
                fix="set model.template.chat_template to a template that writes every answer once",
            )
        start, end = starts[0], ends[0]
        whole = self.turns[number].text
        if whole != whole.strip() and len(self._blank) == 2:
            first, last = self._blank
            found = self._places(lambda k, text: first + text + last if k == number else text, first + last)
            if found and found[first]:
                start = found[first][0]
            if found and found[last]:
                end = found[last][0]
        return start, end

    def _first_written(self, number: int) -> list[int]:
        """Where the text of an answer begins whose first letters the template leaves out (earlier thinking)."""
        whole = self.turns[number].text
        sentinel = next(self._private)

        def places(cut: int) -> list[int]:
            found = self._places(lambda k, text: text[:cut] + sentinel + text[cut:] if k == number else text, sentinel)
            return [] if found is None else found[sentinel]

        low, high = 0, len(whole.rstrip())
        best = places(high)
        while best and high - low > 1:
            middle = (low + high) // 2
            if found := places(middle):
                high, best = middle, found
            else:
                low = middle
        return best


def _around(text: str, first: str, last: str) -> str:
    """``text`` with a sentinel at its first and after its last letter."""
    start = len(text) - len(text.lstrip())
    end = max(start, len(text.rstrip()))
    return text[:start] + first + text[start:end] + last + text[end:]


def free_characters(texts: Sequence[str]) -> Iterator[str]:
    """Private characters that are in none of the texts."""
    known = set().union(*texts)
    return (c for c in map(chr, PRIVATE) if c not in known)
