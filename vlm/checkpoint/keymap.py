"""Two-way key maps between published files and our modules, declared as pairs of templates."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from vlm.models.lora import ADAPTER

_FIELD = re.compile(r"\{(\w+)\}")


def _pattern(template: str) -> re.Pattern[str]:
    pieces = _FIELD.split(template)
    text = "".join(f"(?P<{p}>.+)" if i % 2 else re.escape(p) for i, p in enumerate(pieces))
    return re.compile(text)


def lora_pairs(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Pairs for LoRA of the layers at these templates; ``theirs`` as peft names them, since 0.3 or before."""
    matrices = product(("lora_A", "lora_B"), (f"{ADAPTER}.weight", "weight"))
    return [(f"{theirs}.{matrix}.{end}", f"{ours}.{matrix}.{ADAPTER}.weight") for matrix, end in matrices]


def _rename(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        match = pattern.fullmatch(key)
        if match:
            return target.format(**match.groupdict())
    return None


@dataclass(frozen=True)
class KeyMap:
    """Names of one kind of file.

    pairs     ``(theirs, ours)`` templates such as ``("blocks.{rest}", "vision.vit.blocks.{rest}")``; the first that
              matches applies, in either direction
    ignored   globs of their keys that are known and left out
    """

    pairs: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()

    @cached_property
    def _rules(self) -> tuple[list[tuple[re.Pattern[str], str]], ...]:
        return [(_pattern(a), b) for a, b in self.pairs], [(_pattern(b), a) for a, b in self.pairs]

    def ours(self, key: str) -> str | None:
        """Our name of their key, if the map has it."""
        return _rename(key, self._rules[0])

    def theirs(self, key: str) -> str | None:
        """Their name of our key, if the map has it."""
        return _rename(key, self._rules[1])

    def is_ignored(self, key: str) -> bool:
        """Whether their key is known and left out."""
        return any(fnmatch.fnmatchcase(key, glob) for glob in self.ignored)

    def rename(self, keys: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """``{ours: theirs}`` of the keys to load, and the keys that the map does not declare."""
        pairs = [(self.ours(key), key) for key in keys if not self.is_ignored(key)]
        return {ours: key for ours, key in pairs if ours is not None}, [key for ours, key in pairs if ours is None]
