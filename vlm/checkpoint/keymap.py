"""Two-way key maps between published files and our modules, declared as pairs of templates."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

_FIELD = re.compile(r"\{(\w+)\}")


def _pattern(template: str) -> re.Pattern[str]:
    pieces = _FIELD.split(template)
    text = "".join(f"(?P<{p}>.+)" if i % 2 else re.escape(p) for i, p in enumerate(pieces))
    return re.compile(text)


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
    ignored   globs of their keys that are known and not wanted
    """

    pairs: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = field(default=())

    @cached_property
    def _forward(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(theirs), ours) for theirs, ours in self.pairs]

    @cached_property
    def _backward(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(ours), theirs) for theirs, ours in self.pairs]

    def ours(self, key: str) -> str | None:
        """Our name of their key, or None if the map does not have it."""
        return _rename(key, self._forward)

    def theirs(self, key: str) -> str | None:
        """Their name of our key, or None if the map does not have it."""
        return _rename(key, self._backward)

    def is_ignored(self, key: str) -> bool:
        """Whether their key is known and not wanted."""
        return any(fnmatch.fnmatchcase(key, glob) for glob in self.ignored)

    def rename(self, keys: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """Translate their keys.

        Returns:
            ``{ours: theirs}`` of the keys to load, and the keys that the map does not declare.
        """
        result: dict[str, str] = {}
        unknown: list[str] = []
        for key in keys:
            if self.is_ignored(key):
                continue
            ours = self.ours(key)
            if ours is None:
                unknown.append(key)
            else:
                result[ours] = key
        return result, unknown
