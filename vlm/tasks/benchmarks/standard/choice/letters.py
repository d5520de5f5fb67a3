"""How an option's letter is read from free text by several rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vlm.tasks.benchmarks.standard.items import Item
from vlm.tasks.benchmarks.standard.rules import LETTERS

FAILED = "Failed to obtain answer via API"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
NEAR_END = 4
"""A letter counts among the last words of an answer only."""
LONG = 5
"""An answer of more words may name an option by its text."""
ANYWHERE = ("{} ", "{}.")
"""lmms-eval's forms of a letter without brackets."""
SAYS = re.compile(r"answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
AROUND = (
    ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
    (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip
"""What may be before and after a letter in lmms-eval, in the order in which it is looked for."""


NOT_READ = "-"
"""In place of an answer that a script could not read."""


def numbered(data: Any, items: Sequence[Item]) -> dict[str, str] | None:
    """Result files with the number of an option for each question, from 0; -1 where the script read nothing."""
    found = data.get("results") if isinstance(data, dict) else None
    if not isinstance(found, dict):
        return None
    return {key: LETTERS[int(number)] if int(number) >= 0 else NOT_READ for key, number in found.items()}


def letters_of(item: Item) -> str:
    """The letters of an item's options."""
    return LETTERS[: len(item.choices)]


def by_letter_or_text(output: str, item: Item) -> str | None:
    """VLMEvalKit's exact matching: the only letter among the words, near the end; else the only option named."""
    if FAILED in output or any(text in output for text in REFUSALS):
        return None
    words = output.translate(MARKS).split()
    found = [letter for letter in letters_of(item) if letter in words]
    if len(found) == 1 and words.index(found[0]) >= len(words) - NEAR_END:
        return found[0]
    if not found and "Z" in words:
        return None
    said = SAYS.search(output)
    if said and said[1].upper() in letters_of(item):
        return said[1].upper()
    named = len(output) <= 2 * sum(map(len, item.choices))
    return _only_named(output, item) if named else None


def _only_named(output: str, item: Item) -> str | None:
    """The letter of the option whose text the answer has, if it has one only."""
    named = [LETTERS[k] for k, text in enumerate(item.choices) if text.lower() in output.lower()]
    return named[0] if len(named) == 1 else None


def last_named(output: str, choices: Sequence[str], forms: Sequence[str]) -> str | None:
    """A letter in brackets, else in one of the ``forms``, else of the option that a long answer names; the last one.

    Of letters without brackets the last is searched between spaces, whichever form was found.
    """
    for mark in ",.!?;:'":
        output = output.strip(mark)
    text, letters = f" {output} ", LETTERS[: len(choices)]
    for form in ("({})", *forms):
        found = [c for c in letters if form.format(c) in text]
        if found:
            last = "({})" if form == "({})" else " {} "
            return max(found, key=lambda c: text.rfind(last.format(c)))
    low, named = text.lower(), dict(zip(letters, map(str.lower, choices), strict=True))
    found = [c for c, option in named.items() if option in low] if len(text.split()) > LONG else []
    return max(found, key=lambda c: low.rfind(named[c])) if found else None


def by_first_match(output: str, item: Item) -> str | None:
    """lmms-eval's static reading of MMBench: a letter alone or with punctuation, an option's text, then any form."""
    return _marked(output) or _only_named(output, item) or _best_form(output, letters_of(item))


def _marked(output: str) -> str | None:
    words, five = output.split(), LETTERS[:5]
    alone = [letter for letter in five if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > 3):
        return alone[0]
    for before, after in AROUND:
        found = [letter for letter in five if before + letter + after in words]
        if len(found) == 1:
            return found[0]
    return None


PHRASES = (
    "the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is", "best answer is",
    "the correct option is", "correct option is", "the best option is", "best option is", "the choice is", "choice is",
    "the correct choice is", "correct choice is", "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip


def _best_form(output: str, letters: str) -> str | None:
    """The letter in the form that says most surely that it is the answer; of several the last one."""
    text = output.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare, text = text.strip(), f" {text} "
    found: list[tuple[int, int, str]] = []  # how sure the form is, place, letter
    for sure, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
        found += [(sure, text.rfind(form.format(c)), c) for c in letters if form.format(c) in text]
    found += [(7, place, c) for phrase in PHRASES for place, c in _after(phrase, text, letters)]
    found += [(10, 0, c) for c in letters if bare.startswith(c) and not bare[1:2].isalpha()]
    found += [(9, len(text) - 1, c) for c in letters if bare.endswith(c) and not bare[-2:-1].isalpha()]
    found = found or [(0, text.rfind(c), c) for c in letters if c in text]
    return max(found, key=lambda one: one[:2])[2] if found else None


def _after(phrase: str, text: str, letters: str) -> Sequence[tuple[int, str]]:
    place = text.lower().find(phrase)
    if place < 0:
        return ()
    after = place + len(phrase)
    return [(text.find(c, after), c) for c in letters if text.find(c, after) >= 0]
