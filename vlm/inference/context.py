"""Fits a conversation into the context by dropping whole old turns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from vlm.common.errors import PromptError
from vlm.common.types import Message
from vlm.inference.generation import Generation

log = logging.getLogger(__name__)


def room_for_prompt(generation: Generation, positions: int | None) -> int:
    """Positions a prompt may take, so that the answer still fits; ``positions``: the language model's limit, if any.

    However long an answer may be, three quarters of the context stay with the prompt.
    """
    limit = min(generation.max_length, positions or generation.max_length)
    return limit - min(generation.max_new_tokens, limit // 4)


def room_for_answer(generation: Generation, positions: int | None, prompt: int) -> int:
    """New tokens that fit after a prompt of that length; at least one."""
    limit = positions or prompt + generation.max_new_tokens
    return max(1, min(generation.max_new_tokens, limit - prompt))


def too_long(taken: int, room: int) -> PromptError:
    """The error for a question that does not fit."""
    return PromptError(
        f"the question takes {taken} positions (text and images), but only {room} fit before the answer",
        fix="shorten it, send fewer images, or lower max_new_tokens / raise max_length",
    )


def turns_of(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system message (if any), and the turns: the messages of a question and its answer."""
    system = [m for m in messages[:1] if m.role == "system"]
    turns: list[list[Message]] = []
    for message in messages[len(system) :]:
        if not turns or (message.role == "user" and turns[-1][-1].role == "assistant"):
            turns.append([])
        turns[-1].append(message)
    return system, turns


def fit(messages: Sequence[Message], room: int, length: Callable[[Sequence[Message]], int]) -> list[Message]:
    """The conversation without the old turns that do not fit.

    The oldest turns without an image are dropped first, then the oldest with one; never part of a turn, and never
    the open question.

    Args:
        messages: the conversation, the user's open question last.
        room: positions that it may take.
        length: positions of a conversation, visual tokens included.

    Raises:
        PromptError: the open question alone does not fit.
    """
    kept = list(messages)
    full = taken = length(kept)
    system, turns = turns_of(kept)
    dropped = 0
    while taken > room:
        if len(turns) < 2:
            raise too_long(taken, room)
        old = turns[:-1]
        index = next((i for i, turn in enumerate(old) if not any(m.media for m in turn)), 0)
        del turns[index]
        dropped += 1
        kept = system + [m for turn in turns for m in turn]
        taken = length(kept)
    if dropped:
        log.warning("conversation of %d positions cut to %d: left out %d old turn(s)", full, taken, dropped)
    return kept
