"""Whether an open answer agrees with the reference: rules by kind of question, as pure functions of texts.

The question they decide is: given the question, does the answer imply the reference? Another judge (a language model,
say) is a function with the same arguments, named by its dotted path.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vlm.common.errors import ConfigError, unknown
from vlm.common.registry import names, resolve
from vlm.tasks.metrics import exact_match

Kind = Literal["letter", "yes/no", "count", "colour", "free"]
Judge = Callable[[str, str, str], bool]
"""(question, answer, reference) -> whether the answer is right."""

_WORDS = re.compile(r"(?<!\w)-?\d+(?:,\d{3})*(?:[.:/]\d+)*(?!\w)|[^\W_]+(?:'[^\W_]+)?(?:\+\+|#)?")
"""Numbers (-3, 1,000, 2.5, 9:30, 1/2) as one word, and words (don't, C++)."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_LETTER = re.compile(r"\W*([A-Za-z])(?:\W*|[.):,]\W.*)", re.DOTALL)
_CHOSEN = re.compile(r"\b(?:answer|option|choice|letter)\b(?: is)?\W{0,3}([A-Za-z])\b(?!')", re.IGNORECASE)
_MARKS = " \t\n.,;:!?\"'()[]{}“”‘’…。，、！？"
"""Punctuation that may surround an answer; other signs (+, -, $) belong to it."""
_ARTICLES = {"a", "an", "the"}
_YES, _NO = {"yes", "yeah", "yep", "yup", "correct", "true"}, {"no", "nope", "nah", "incorrect", "false"}
_NOT = {"not", "never", "cannot", "neither", "nor", "without", "none", "nobody", "nothing"}
_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_NUMBERS = {word: k for k, word in enumerate((*_ONES.split(), "seventeen", "eighteen", "nineteen", "twenty"))}
_NUMBERS |= {"thirty": 30, "forty": 40, "fifty": 50, "hundred": 100, "once": 1, "twice": 2, "single": 1, "couple": 2}
_NUMBERS |= {"none": 0, "nobody": 0, "nothing": 0, "no": 0, "dozen": 12, "pair": 2}
_COLOURS = "black white red green blue yellow brown gray orange pink purple beige gold silver tan maroon teal violet"
COLOURS = frozenset((*_COLOURS.split(), "turquoise", "navy", "cream", "cyan", "magenta", "khaki", "bronze"))
_SAME = {"grey": "gray", "golden": "gold", "silvery": "silver", "colour": "color", "tv": "television", "ok": "okay"}
_LITTLE = "is are was were be it its this that there and of in on at to with some very"
_SMALL = _ARTICLES | set(_LITTLE.split())
LONG = 4
"""From this many content words on, an answer need not have every word of the reference."""
ENOUGH = 0.75
"""The share of a long reference's words that the answer must have."""


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles; zero to sixteen as digits, British spellings as American.

    A text of nothing but articles keeps them.
    """
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    found = [_SAME.get(w, w).replace(",", "") for w in _WORDS.findall(plain)]
    result = [w for w in found if w not in _ARTICLES] or found
    return [str(_NUMBERS[w]) if w in _ONES.split() else w for w in result]


def alternatives(reference: str) -> list[str]:
    """The answers that a reference allows: ``"platform or tunnel"`` allows two, ``"1/2"`` one."""
    return [part.strip() for part in re.split(r"\bor\b|(?<!\d)/|/(?!\d)", reference) if part.strip()] or [reference]


def letter(text: str) -> str | None:
    """The option letter that an answer consists of (``B``, ``(b).``, ``B) a dog``) or names (``The answer is B``)."""
    found = _LETTER.fullmatch(text.strip()) or _CHOSEN.search(text)
    return found[1].upper() if found else None


def kind_of(question: str, reference: str) -> Kind:
    """What is asked for, judged by the reference first: an option, yes or no, a number, colours, or anything else."""
    if re.fullmatch(r"[A-Za-z]", reference.strip(_MARKS)):
        return "letter"
    declared = words(reference)
    if declared and declared[0] in ("yes", "no") and len(declared) == 1:
        return "yes/no"
    counted = re.search(r"\bhow many\b|\bnumber of\b", question.lower())
    if len(declared) <= 2 and numbers(declared) and (counted or all(map(_NUMBER.fullmatch, declared))):
        return "count"
    parts = [words(part) for part in alternatives(reference)]
    if parts and all(p and set(p) <= COLOURS | {"and", "light", "dark"} and set(p) & COLOURS for p in parts):
        return "colour"
    return "free"


def numbers(tokens: Sequence[str]) -> list[float]:
    """The numbers among words, in order."""
    values = (float(w) if _NUMBER.fullmatch(w) else _NUMBERS.get(w) for w in tokens)
    return [value for value in values if value is not None]


def polarity(answer: str, question: str = "") -> bool | None:
    """Whether an answer affirms, decided by its first yes or no, else by a negation, else by repeating the question.

    None if none of these applies.
    """
    declared = words(answer)
    for word in declared:
        if word in _YES | _NO:
            return word in _YES
    if any(w in _NOT or w.endswith("n't") for w in declared):
        return False
    asked, told = content(question), content(answer)
    return True if told and asked and len(asked & told) * 2 >= len(told) else None


def content(text: str) -> set[str]:
    """Stems of the content words."""
    return {stem(w) for w in words(text) if w not in _SMALL}


def stem(word: str) -> str:
    """A word without its plural or -ing ending."""
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-2] if word.endswith(("ches", "shes", "xes", "sses")) else word[:-1]
    if len(word) > 5 and word.endswith("ing"):
        word = word[:-3]
        word = word[:-1] if len(word) > 2 and word[-1] == word[-2] and word[-1] not in "ls" else word
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def open_match(question: str, answer: str, reference: str) -> bool:
    """Whether an answer agrees with the reference, by the rule for its :func:`kind_of` question.

    * letter: the answer's option :func:`letter` is the reference's;
    * yes/no: the answer affirms or denies like the reference (see :func:`polarity`);
    * count: the first number of the answer equals the reference's;
    * colour: the answer names all colours of one alternative and at most one more;
    * free: it has all words of one alternative, or most words of a long one; both or neither are negated.
    """
    declared, kind = words(answer), kind_of(question, reference)
    if same_text(answer, reference):
        return True
    if not declared:
        return False
    if kind == "letter":
        return letter(answer) == letter(reference)
    if kind == "yes/no":
        return polarity(answer, question) == (words(reference)[0] == "yes")
    if kind == "count":
        return numbers(declared)[:1] == numbers(words(reference))[:1]
    if kind == "colour":
        named = set(declared) & COLOURS
        expected = [set(words(part)) & COLOURS for part in alternatives(reference)]
        return any(w <= named and len(named) <= len(w) + 1 for w in expected)
    return any(_says(answer, part) for part in [reference, *alternatives(reference)])


def same_text(answer: str, reference: str) -> bool:
    """Whether two texts are equal apart from case, white space and punctuation around them."""
    texts = [unicodedata.normalize("NFKC", text).casefold().strip() for text in (answer, reference)]
    bare = [text.strip(_MARKS) for text in texts]
    return texts[0] == texts[1] if not all(bare) else bare[0] == bare[1]


def _says(answer: str, reference: str) -> bool:
    if same_text(answer, reference):
        return True
    expected, told = content(reference), content(answer)
    if not expected or _denies(answer) != _denies(reference):
        return False
    share = len(expected & told) / len(expected)
    return share == 1 or (len(expected) >= LONG and share >= ENOUGH)


def _denies(text: str) -> bool:
    return bool({*_NOT, "no"} & set(words(text)))


JUDGES: Mapping[str, Judge] = {
    "exact": lambda question, answer, reference: exact_match(answer, reference),
    "open": open_match,
}


def judge_of(name: str) -> Judge:
    """``exact``, ``open``, a registered judge, or the function at ``package.module:name`` (see ``resolve``).

    For all of them an exact match is right. Raises ConfigError for any other name.
    """
    if name not in JUDGES and ":" not in name and name not in names("judge"):
        known = [*JUDGES, *names("judge")]
        raise ConfigError(unknown("judge", name, known), fix="or name a function as package.module:function")
    rule: Judge = JUDGES[name] if name in JUDGES else resolve("judge", name)

    def judge(question: str, answer: str, reference: str) -> bool:
        return exact_match(answer, reference) or rule(question, answer, reference)

    return judge


def interval(shares: Sequence[float], level: float = 0.95, draws: int = 2000, seed: int = 0) -> list[float] | None:
    """Bounds of the mean by a percentile bootstrap over questions; None without questions.

    Args:
        shares: per question, the share of runs that answered it right.
        level: coverage of the bounds.
        draws: number of resamples.
        seed: of the resampling.
    """
    if not len(shares):
        return None
    values = np.asarray(shares, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def intervals(types: Sequence[Any], shares: Sequence[float]) -> dict[str, Any]:
    """``{"overall": [low, high], "by_type": {type: [low, high]}}``; a question without a type counts only overall."""
    groups: dict[str, list[float]] = {}
    for kind, value in zip(types, shares, strict=True):
        if kind is not None:
            groups.setdefault(str(kind), []).append(value)
    return {"overall": interval(shares), "by_type": {k: interval(groups[k]) for k in sorted(groups)}}
