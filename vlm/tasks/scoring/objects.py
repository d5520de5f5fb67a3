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
_APART = {"home plate": "home plate", "train track": "train track", "bow tie": "tie", "toilet seat": "toilet",
          "wine glas": "wine glass", "passenger jet": "jet", "passenger train": "train"}  # fmt: skip
_WORD = re.compile(r"[^\W_][^\s.,;:!?\"'()\[\]{}<>]*(?:\.[^\W_][^\s.,;:!?\"'()\[\]{}<>]*)*|\S")


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
        """From groups of synonyms, the name first.

        A synonym with white space around it, as a line of the published list has one, keeps its words together and
        counts as no object: so does the script that reads this list.
        """
        names = {word: group[0] for group in groups for word in group}
        pairs = {word.strip(): word.strip() for word in names if len(word.split()) == 2}
        for animal in _ANIMALS:
            pairs |= {f"{young} {animal}": animal for young in _YOUNG}
        return cls(names, pairs | _APART)

    def named(self, caption: str) -> list[str]:
        """The names of the objects in a caption, one for each mention."""
        single = [singular(word) for word in _WORD.findall(caption.lower())]
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
