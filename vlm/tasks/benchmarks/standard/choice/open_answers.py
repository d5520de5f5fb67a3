"""What an open answer may mean: phrases after words like "is" and "therefore", and the numbers in them."""

from __future__ import annotations

import re
from collections.abc import Sequence

BEFORE = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""Words after which the answer is expected; in the last line also an equals sign."""
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
"""With thousands separators, in scientific notation, and others."""
Reading = str | float


def readings(output: str) -> list[Reading]:
    """Everything that an answer may mean, normalised."""
    phrases = _phrases(output)
    texts = [*phrases, *(number for phrase in phrases for form in NUMBERS for number in form.findall(phrase))]
    return [reading for text in texts for reading in normalised(text)]


def _phrases(output: str) -> list[str]:
    """The shortest phrase after a word of :data:`BEFORE` in each line, or else the whole answer."""
    whole = output.strip().strip(".").lower()
    lines, result = whole.split("\n"), list[str]()
    for number, line in enumerate(lines, start=1):
        words = (*BEFORE, "=") if number == len(lines) else BEFORE
        ends = [line.split(word)[-1].strip() for word in words if word in line]
        shortest = _shortest(ends)
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            result.append(shortest)
    return result or [whole]


def _shortest(ends: Sequence[str]) -> str:
    """The shortest text, the first of several; an empty one gives way to whatever comes next."""
    found = ""
    for text in ends:
        found = text if not found or len(text) < len(found) else found
    return found


def normalised(text: str) -> list[Reading]:
    """A number with two decimals, or the text in lower case; a single character with a space on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def agrees(found: Sequence[Reading], references: Sequence[object]) -> bool:
    """Whether a reading has a reference in it, or is the same number."""
    known = [reading for reference in references for reading in normalised(str(reference))]
    texts = [k for k in known if isinstance(k, str)]
    return any(any(t in f for t in texts) if isinstance(f, str) else f in known for f in found)
