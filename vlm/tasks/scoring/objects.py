"""Objects of COCO that a caption names: words in the singular, pairs of words, and synonyms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_IRREGULAR = {
    "children": "child", "grandchildren": "grandchild", "geese": "goose", "mice": "mouse", "oxen": "ox", "kine": "cow",
    "people": "person", "knives": "knife", "pocketknives": "pocketknife", "calves": "calf", "feet": "foot",
    "scissors": "scissors", "bison": "bison", "doggies": "doggies", "collies": "collies",
}  # fmt: skip
_YOUNG = ("baby", "adult")
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
_TOGETHER = """
    motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant,
    stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog,
    cell phone, mobile phone, teddy bear, hair drier, potted plant, laptop computer, home plate, train track
"""
_PAIRS = tuple(pair.strip() for pair in _TOGETHER.split(","))
"""Pairs that the script keeps together whatever the synonyms are."""
_INSTEAD = {
    "bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass", "passenger jet": "jet",
    "passenger train": "train",
}  # fmt: skip
_APART = re.compile(
    '[;@#$%&?!"\u201c\u201d\u2018\u2019\u00ab\u00bb`()\\[\\]{}<>*\u2013\u2014\u2026]|--|\\.{2,}|[:,](?!\\d)'
    "|\\.(?=[\\s)\\]}>\"']|$)|n't\\b|'(?:s|m|d|ll|re|ve)?(?!\\w)|(?<!\\w)'"
)
"""What does not belong to a word, at least not to one that is an object."""


@dataclass(frozen=True)
class Objects:
    """What is an object, and by which name it is counted.

    Attributes:
        names: word or pair of words -> the object's name in COCO.
        pairs: pairs of words that are one, so that neither of them counts alone -> what stands for them.
    """

    names: Mapping[str, str]
    pairs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: Sequence[Sequence[str]]) -> Objects:
        """From groups of synonyms, the name first. Other pairs of words than those of the script never match."""
        pairs = {pair: pair for pair in _PAIRS}
        for animal in _ANIMALS:
            pairs |= {f"{young} {animal}": animal for young in _YOUNG}
        return cls({word: group[0] for group in groups for word in group}, pairs | _INSTEAD)

    def named(self, caption: str) -> list[str]:
        """The names of the objects in a caption, one for each mention."""
        single = [singular(word) for word in _APART.sub(" ", caption.lower()).split()]
        words, place = [], 0
        while place < len(single):
            pair = " ".join(single[place : place + 2])
            words.append(self.pairs.get(pair, single[place]))
            place += 2 if pair in self.pairs else 1
        if "toilet" in words:
            words = [word for word in words if word != "seat"]
        return [self.names[word] for word in words if word in self.names]


def singular(word: str) -> str:
    """A lower-case word without the plural's ending; an ``s`` goes in any case, also that of ``glass``."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("men") and word != "specimen":
        return word[:-3] + "man"
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "oes", "buses")):
        return word[:-2]
    return word.removesuffix("s")
