"""VQA accuracy: short answers against those of several people, by the rules of the scripts that are in use.

All scripts count, for each person, how many of the *others* gave the model's answer: three make 1, fewer make a third
each; the score is the mean over the persons. They differ in what is done to texts before they are compared: that is a
:data:`Rule`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

Rule = Callable[[str, tuple[str, ...]], tuple[str, Sequence[str]]]
"""(answer, references) -> the texts that are compared for equality."""

ENOUGH = 3
"""So many others with the same answer make it fully right."""
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
_TEN = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(_TEN.split())} | {"none": "0"}
_WORDS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one(word: str) -> list[str]:
    """The word without one of its apostrophes, for each of them."""
    return [word[:k] + word[k + 1 :] for k, sign in enumerate(word) if sign == "'"]


CONTRACTIONS = {wrong: word for word in _WORDS.split() for wrong in _without_one(word)} | {"somebody'd": "somebodyd"}
"""A word that lacks one apostrophe -> the word, and the one slip of the published list."""
_STRAIGHT = ("ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's", "who've")
VIZWIZ_CONTRACTIONS = {
    (wrong if wrong in ("couldn'tve", "hadn'tve") else wrong.replace("'", "’")): (
        word if word in _STRAIGHT else word.replace("'", "’")
    )
    for wrong, word in CONTRACTIONS.items()
}
"""In VizWiz's script most apostrophes are typographic ones, which few references have."""

_COMMA, _COMMAS = re.compile(r"\d,\d"), re.compile(r"\d,+\d")
_PERIOD = re.compile(r"\.(?!\d)")
PERIODS = 32
"""Only so many are removed: the scripts give ``re.UNICODE``, which is 32, where a count is expected."""


def spaced(text: str) -> str:
    """Line ends and tabs as spaces, none around the text."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def unpunctuated(text: str, comma: re.Pattern[str] = _COMMA) -> str:
    """Without punctuation: a sign that is next to a space anywhere vanishes, another becomes a space.

    With a comma between digits every sign vanishes. Periods before a digit stay.
    """
    result, commas = text, comma.search(text) is not None
    for sign in PUNCTUATION:
        if sign in text:
            vanishes = commas or f"{sign} " in text or f" {sign}" in text
            result = result.replace(sign, "" if vanishes else " ")
    return _PERIOD.sub("", result, count=PERIODS)


def plain_words(text: str, contractions: dict[str, str] | None = None) -> str:
    """In lower case, number words to ten as digits, without articles, apostrophes put where the list has them."""
    known = CONTRACTIONS if contractions is None else contractions
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(known.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 18)
def normalised(text: str) -> str:
    """A text as the VQA script compares it, where it changes texts at all."""
    return plain_words(unpunctuated(text))


@lru_cache(maxsize=1 << 18)
def tokenised(text: str) -> str:
    """A text as the TextVQA challenge compares it: without commas and question marks, ``'s`` a word of its own."""
    lower = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_words(unpunctuated(spaced(lower), _COMMAS))


def official(answer: str, references: tuple[str, ...]) -> tuple[str, Sequence[str]]:
    """The VQA script: texts are normalised only where references differ; else they are compared to the letter."""
    answer, references = spaced(answer), _spaced(references)
    if len(set(references)) > 1:
        return normalised(answer), _normalised(references)
    return answer, references


def caseless(answer: str, references: tuple[str, ...]) -> tuple[str, Sequence[str]]:
    """A published copy of the VQA script: as :func:`official`, compared in lower case."""
    answer, compared = official(answer, references)
    return answer.lower(), [text.lower() for text in compared]


def always(answer: str, references: tuple[str, ...]) -> tuple[str, Sequence[str]]:
    """lmms-eval's rule for VQAv2: as :func:`official`, but texts are always normalised."""
    return _always(spaced(answer)), tuple(map(_always, _spaced(references)))


def evalai(answer: str, references: tuple[str, ...]) -> tuple[str, Sequence[str]]:
    """The rule of the TextVQA challenge, and of lmms-eval for OK-VQA, VizWiz and TextVQA."""
    return tokenised(answer), _tokenised(references)


def vizwiz(answer: str, references: tuple[str, ...]) -> tuple[str, Sequence[str]]:
    """VizWiz's script: the answer is normalised, references are left as they are written."""
    return _vizwiz(spaced(answer)), references


@lru_cache(maxsize=1 << 18)
def _always(text: str) -> str:
    return plain_words(unpunctuated(text, _COMMAS))


@lru_cache(maxsize=1 << 18)
def _vizwiz(text: str) -> str:
    return plain_words(unpunctuated(text), VIZWIZ_CONTRACTIONS)


@lru_cache(maxsize=1 << 18)
def _spaced(references: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(spaced, references))


def _normalised(references: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(normalised, references))


def _tokenised(references: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(tokenised, references))


def accuracies(
    answers: Sequence[str], references: Sequence[Sequence[str]], rule: Rule = official
) -> npt.NDArray[np.float64]:
    """The VQA accuracy of each answer, the mean over leaving out each person.

    Args:
        answers: of the model.
        references: per question the answers of people, ten as a rule.
        rule: how texts are compared.
    """
    result = np.empty(len(answers))
    for k, (answer, people) in enumerate(zip(answers, references, strict=True)):
        text, compared = rule(answer, tuple(people))
        result[k] = share(tuple([text == other for other in compared]))
    return result


@cache
def share(same: tuple[bool, ...]) -> float:
    """The accuracy of an answer that these persons gave, summed in their order as the scripts do; 0 without any."""
    count = sum(same)
    return sum(min(1, (count - own) / ENOUGH) for own in same) / len(same) if same else 0.0


def of_all(answer: str, references: Sequence[str]) -> float:
    """A third for each person with the same answer in lower case, nobody left out, at most 1."""
    return min(sum(answer.lower() == text.lower() for text in references) / ENOUGH, 1.0)
