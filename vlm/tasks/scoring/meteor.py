"""METEOR 1.5 for English with its exact and stem modules, as its jar computes it with ``-norm -m 'exact stem'``.

The jar in ``pycocoevalcap`` also matches synonyms and paraphrases, from tables of 60 MB; its number is higher, and has
another name: METEOR. This one is called ``meteor_exact_stem``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vlm.tasks.scoring.statistics import Rows, total
from vlm.tasks.scoring.stem import stem

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
"""Published parameters: weight of recall, the two of fragmentation, and the weight of content words."""
EXACT, STEM = 1.0, 0.6
"""Weights of the modules."""
BEAM = 40
COLUMNS = 15
"""Per caption and its best reference: lengths, function words; matched content and function words by module, in the
caption and in the reference; chunks, 0 for the same text; matched words of both."""
_FUNCTION_WORDS = """
    a i s an as at be by he if in is it no of on or so to up we all and are but can for had has her his its new not one
    out she the two was who you about after also been could first from have into last more other over people said some
    than that their there they this time were what when which will with would year years
    " $ ' ( ) , - . : ? ` -- -lrb- -rrb- 's 't
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_L = r"[^\W\d_]"
_RULES = (
    (re.compile("[\u2018\u2019]"), "'"),
    (re.compile("[\u201c\u201d]"), '"'),
    (re.compile("([\u3400-\u9fff])"), r" \1 "),
    (re.compile(r"\.(?=\.)|(?<=\.)\."), "\ue001"),
    (re.compile("(\ue001+)"), r" \1 "),
    (re.compile("([^\\w\\s.'`,\\-\ue001]|_)"), r" \1 "),
    (re.compile(r"(?<!\d),|,(?!\d)"), " , "),
    (re.compile(r"([\w.])-(?=\w)"), r"\1 "),
    (re.compile(rf"(?<!{_L})'(?!{_L})"), " ' "),
    (re.compile(rf"(?<![^\W_])'(?={_L})"), " ' "),
    (re.compile(rf"(?<={_L})'(?!{_L})"), " ' "),
    (re.compile(rf"(?<=[^\W_])'(?={_L})"), " '"),
)
_ACRONYM = re.compile(r"(?:[^\W\d_]+\.){2,}")
_PREFIXES = frozenset(("v", "vs", "rev"))


def normalized(tokens: Sequence[str]) -> list[str]:
    """The words of a caption as METEOR reads them, from lower-case tokens."""
    text = " ".join(tokens)
    if not (text.isascii() and text.replace(" ", "").isalpha()):
        for pattern, instead in _RULES:
            text = pattern.sub(instead, text)
    words, result = text.split(), []
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else ""
        if word.endswith(".") and len(word) > 1 and not _keeps_stop(word[:-1], following):
            result += [word[:-1], "."]
        else:
            result.append(word.replace(".", "") if _ACRONYM.fullmatch(word) else word)
    return [word.replace("\ue001", ".") for word in result]


def _keeps_stop(word: str, following: str) -> bool:
    if ("." in word and re.search(_L, word)) or word in _PREFIXES or "a" <= following[:1] <= "z":
        return True
    return word == "pp" and following[:1].isdigit()


def meteor_rows(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Rows:
    """A row per caption for the total ``meteor``: its counts with the reference that gives the highest score."""
    rows = np.zeros((len(candidates), COLUMNS))
    for number, (candidate, own) in enumerate(zip(candidates, references, strict=True)):
        words = normalized(candidate)
        found = [_counts(words, normalized(reference)) for reference in own]
        scores = [_score(row) for row in found]
        rows[number] = found[scores.index(max(scores))]
    return rows


@total("meteor", summed=True)
def meteor(rows: Rows) -> float:
    """METEOR of all rows together."""
    return _score([float(x) for x in rows.sum(axis=0)])


def _score(row: Sequence[float]) -> float:
    """The score of one caption, or of the sums of many."""
    length, other, function, other_function, *matches = row[:12]
    chunks, matched, other_matched = row[12:]
    size, other_size = _weighted(length - function, function), _weighted(other - other_function, other_function)
    found = EXACT * _weighted(matches[0], matches[2]) + STEM * _weighted(matches[4], matches[6])
    other_found = EXACT * _weighted(matches[1], matches[3]) + STEM * _weighted(matches[5], matches[7])
    precision = found / size if size else 0.0
    recall = other_found / other_size if other_size else 0.0
    if not precision or not recall:
        return 0.0
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    return mean * (1 - GAMMA * (2 * chunks / (matched + other_matched)) ** BETA)


def _weighted(content: float, function: float) -> float:
    return DELTA * content + (1 - DELTA) * function


def _counts(words: list[str], other: list[str]) -> list[float]:
    """The columns for a caption and one reference."""
    pairs = align(words, other)
    row = [0.0] * COLUMNS
    row[0], row[1] = len(words), len(other)
    row[2], row[3] = (sum(w in FUNCTION_WORDS for w in side) for side in (words, other))
    for place, (i, j) in enumerate(pairs):
        first = 4 if words[i] == other[j] else 8
        row[first + 2 * (words[i] in FUNCTION_WORDS)] += 1
        row[first + 1 + 2 * (other[j] in FUNCTION_WORDS)] += 1
        follows = place and pairs[place - 1] == (i - 1, j - 1)
        row[12] += not follows
    row[13] = row[14] = len(pairs)
    if row[12] == 1 and len(pairs) == len(words) == len(other):
        row[12] = 0  # the same text: not even one chunk
    return row


State = tuple[int, int, int, tuple[tuple[int, int], ...]]
"""Chunks, pairs by stem, distance, and the pairs; one for each set of used places with the last pair's place."""


def align(words: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of equal words or stems: as many as possible, then in few chunks, then close to each other in place."""
    places: dict[str, list[int]] = {}
    for j, word in enumerate(other):
        places.setdefault(stem(word), []).append(j)
    states: dict[tuple[int, int], State] = {(0, -2): (0, 0, 0, ())}
    for i, word in enumerate(words):
        following: dict[tuple[int, int], State] = {}
        for (used, last), state in states.items():
            options = [((used, -2), state)]
            for j in places.get(stem(word), ()):
                if not used >> j & 1:
                    options.append(((used | 1 << j, j), _with(state, last, i, j, word != other[j])))
            for key, state in options:
                if key not in following or state[:3] < following[key][:3]:
                    following[key] = state
        if len(following) > BEAM:
            following = dict(sorted(following.items(), key=lambda s: _rank(s[1]))[:BEAM])
        states = following
    return list(min(states.values(), key=_rank)[3])


def _with(state: State, last: int, i: int, j: int, stems: bool) -> State:
    chunks, stemmed, distance, pairs = state
    return chunks + (last != j - 1), stemmed + stems, distance + abs(i - j), (*pairs, (i, j))


def _rank(state: State) -> tuple[int, int, int, int]:
    return -len(state[3]), *state[:3]
