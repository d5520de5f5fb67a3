"""What is said about a scene: captions, questions with answers, dialogues, and the written note.

Wording is regular on purpose: one template for each type, the word asked about ends the question,
answers have one or two words. Answers are drawn balanced, so that guessing stays near chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vlm.datasets.synthetic.scene import (
    COLORS,
    COUNTS,
    HELD_OUT,
    KINDS,
    LETTERS,
    MAX_THINGS,
    SHAPES,
    Object,
    Scene,
    noun,
)

T = TypeVar("T")

QUESTION_TYPES = ("color", "shape", "letter", "count", "position", "size", "exist", "bind")

INSTRUCTIONS = (
    "Describe this image in detail.",
    "Tell me what this picture shows.",
    "Please describe the things in this image.",
    "What does the picture show? Describe it.",
)
"""Ways to ask for the caption; ``prompts/alignment.txt`` has the same for pictures of the real world."""

NOTHING = "nothing"
NOTE_WORDS = 1 + 5 * MAX_THINGS
"""Words in a note: how many things, then row, column, size, colour and kind of each."""

_TEMPLATES = {
    "color": "What color is the {}?",
    "shape": "Which shape is {}?",
    "letter": "Which letter is {}?",
    "count": "How many objects are there?",
    "position": "Where is the {}?",
    "size": "What size is the {}?",
    "exist": "Is there a {}?",
    "bind": "Is there a {}?",
}


@dataclass(frozen=True)
class Question:
    """A question of a type with its only right answer; ``unseen`` tells that it is about a held-out pair."""

    type: str
    text: str
    answer: str
    unseen: bool = False


def article(words: str) -> str:
    """``words`` with ``a`` or ``an`` in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def phrase(thing: Object) -> str:
    """``a large red circle in the top left``."""
    return f"{article(f'{thing.size} {thing.color} {thing.name}')} in the {thing.where}"


def caption(scene: Scene) -> str:
    """All things in order of place, joined by commas and ``and``."""
    phrases = [phrase(thing) for thing in scene.things]
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def note(scene: Scene) -> tuple[str, ...]:
    """The scene as ``NOTE_WORDS`` words in fixed slots; slots of missing things say ``nothing``.

    The kind comes last: a causal reader has met all else of the thing by then, so one look at it finds everything.
    """
    words = [COUNTS[len(scene.things)]]
    for thing in scene.things:
        words += [*thing.where.split(), thing.size, thing.color, thing.kind]
    return (*words, *[NOTHING] * (NOTE_WORDS - len(words)))


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _unique(things: Sequence[Object], attribute: str) -> list[Object]:
    values = [getattr(thing, attribute) for thing in things]
    return [thing for thing in things if values.count(getattr(thing, attribute)) == 1]


def _about(kind: str, thing: Object, answer: str, said: str) -> Question:
    return Question(kind, _TEMPLATES[kind].format(said), answer, thing.is_unseen)


def _ask_named(scene: Scene, kind: str, rng: np.random.Generator, only_unseen: bool) -> Question | None:
    """color, position, size (asked by kind), shape and letter (asked by colour)."""
    things = _unique(scene.things, "color" if kind in ("shape", "letter") else "kind")
    if kind in ("shape", "letter"):
        things = [thing for thing in things if thing.kind in (SHAPES if kind == "shape" else LETTERS)]
    if only_unseen:
        things = [thing for thing in things if thing.is_unseen]
    if not things:
        return None
    thing: Object = _pick(rng, things)
    if kind in ("shape", "letter"):
        return _about(kind, thing, thing.kind, thing.color)
    answer = {"color": thing.color, "position": thing.where, "size": thing.size}[kind]
    return _about(kind, thing, answer, thing.name)


def _ask_exist(scene: Scene, rng: np.random.Generator, yes: bool, only_unseen: bool) -> Question:
    if yes:
        things = [thing for thing in scene.things if thing.is_unseen or not only_unseen]
        thing: Object = _pick(rng, things)
        return _about("exist", thing, "yes", thing.name)
    present = {thing.kind for thing in scene.things}
    kind = _pick(rng, [kind for kind in KINDS if kind not in present])
    return Question("exist", _TEMPLATES["exist"].format(noun(kind)), "no", scene.has_unseen)


def _ask_bind(scene: Scene, rng: np.random.Generator, yes: bool, only_unseen: bool) -> Question:
    """``no`` questions mix colours and kinds of the scene where they can, so that both words may well be there."""
    if yes:
        things = [thing for thing in scene.things if thing.is_unseen or not only_unseen]
        thing: Object = _pick(rng, things)
        return Question("bind", _bind_text(thing.color, thing.kind), "yes", thing.is_unseen)
    present = {(thing.color, thing.kind) for thing in scene.things}
    colors: tuple[str, ...] = tuple(COLORS)
    kinds: tuple[str, ...] = KINDS
    style = rng.random()
    if style < 0.75:
        colors = tuple({thing.color for thing in scene.things}) if style < 0.5 else colors
        kinds = tuple({thing.kind for thing in scene.things}) if style < 0.25 or style >= 0.5 else kinds
    pairs = sorted({(c, k) for c in colors for k in kinds} - present - HELD_OUT)
    if not pairs:
        pairs = sorted({(c, k) for c in COLORS for k in KINDS} - present - HELD_OUT)
    color, kind = _pick(rng, pairs)
    return Question("bind", _bind_text(color, kind), "no", scene.has_unseen)


def _bind_text(color: str, kind: str) -> str:
    words = f"{color} {noun(kind)}"
    return f"Is there {article(words)}?"


def ask(
    scene: Scene, kind: str, rng: np.random.Generator, *, yes: bool | None = None, only_unseen: bool = False
) -> Question | None:
    """A question of one type about a scene, or None where none of this type has a single right answer.

    Args:
        kind: one of ``QUESTION_TYPES``.
        yes: answer wanted of ``exist`` and ``bind``; by default either with equal chance.
        only_unseen: ask about held-out pairs only.

    Raises:
        KeyError: unknown type.
    """
    if kind == "count":
        return Question(kind, _TEMPLATES[kind], COUNTS[len(scene.things)], scene.has_unseen)
    if kind in ("exist", "bind"):
        yes = bool(rng.random() < 0.5) if yes is None else yes
        return (_ask_exist if kind == "exist" else _ask_bind)(scene, rng, yes, only_unseen)
    if kind not in _TEMPLATES:
        raise KeyError(f"unknown question type {kind!r} (known: {', '.join(QUESTION_TYPES)})")
    return _ask_named(scene, kind, rng, only_unseen)


def dialogue(
    scene: Scene,
    rng: np.random.Generator,
    turns: int = 4,
    *,
    describe: float = 0.15,
    types: Sequence[str] = QUESTION_TYPES,
) -> list[Question]:
    """``turns`` different questions about one scene; with chance ``describe`` the first asks for the caption.

    ``types`` are drawn from with equal chance; a type named twice comes twice as often.
    """
    asked: list[Question] = []
    if rng.random() < describe:
        asked.append(Question("describe", str(_pick(rng, INSTRUCTIONS)), caption(scene), scene.has_unseen))
    for _ in range(20 * turns):
        if len(asked) == turns:
            break
        question = ask(scene, str(_pick(rng, types)), rng)
        if question is not None and all(question.text != other.text for other in asked):
            asked.append(question)
    return asked
