"""What an image shows: one to three things on a 3x3 grid, drawn from ``(seed, split, index)``.

A scene is data only. ``render`` paints it, ``language`` talks about it, ``export`` writes files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "orange": (244, 138, 24),
    "yellow": (246, 226, 48),
    "green": (48, 172, 62),
    "cyan": (54, 214, 224),
    "blue": (44, 84, 226),
    "purple": (156, 56, 204),
    "white": (246, 246, 246),
}
"""Name -> RGB, 0..255."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
LETTERS = ("A", "E", "H", "L", "T", "Z")
KINDS = SHAPES + LETTERS
SIZES = ("small", "large")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
COUNTS = ("zero", "one", "two", "three")
MAX_THINGS = 3

HELD_OUT = frozenset((tuple(COLORS)[(5 * i + 3) % len(COLORS)], kind) for i, kind in enumerate(KINDS))
"""The twelve (colour, kind) pairs, one per kind, that no caption, dialogue or training image names."""

SPLITS = {"captions": 0, "dialogues": 1, "seen": 2, "unseen": 3, "foundation": 4}
"""Split -> number in the random key, so that no two splits share an image."""

DEFAULT_MIX = (0.45, 0.45, 0.10)
"""Chances of one, two and three things."""

_PAIRS = tuple((color, kind) for color in COLORS for kind in KINDS if (color, kind) not in HELD_OUT)
_UNSEEN = tuple(sorted(HELD_OUT, key=lambda pair: KINDS.index(pair[1])))


@dataclass(frozen=True, order=True)
class Object:
    """One thing. ``place`` counts the nine cells row by row from 0 (top left) to 8 (bottom right)."""

    place: int
    color: str
    kind: str
    size: str

    @property
    def where(self) -> str:
        """Name of the place: row, then column."""
        return f"{ROWS[self.place // 3]} {COLUMNS[self.place % 3]}"

    @property
    def name(self) -> str:
        """``circle``, or ``letter A``."""
        return noun(self.kind)

    @property
    def is_unseen(self) -> bool:
        """Whether the pair of colour and kind is held out."""
        return (self.color, self.kind) in HELD_OUT


@dataclass(frozen=True)
class Scene:
    """Things in order of place, and the key that they and their image's jitter were drawn from."""

    things: tuple[Object, ...]
    key: tuple[int, int, int] = (0, 0, 0)

    @property
    def has_unseen(self) -> bool:
        """Whether any thing is a held-out pair."""
        return any(thing.is_unseen for thing in self.things)


def noun(kind: str) -> str:
    """How a kind is said: shapes by their name, letters as ``letter A``."""
    return f"letter {kind}" if kind in LETTERS else kind


def random_scene(
    rng: np.random.Generator,
    *,
    mix: tuple[float, float, float] = DEFAULT_MIX,
    unseen: bool = False,
    key: tuple[int, int, int] = (0, 0, 0),
) -> Scene:
    """Draw a scene.

    Args:
        rng: source of randomness.
        mix: chances of one, two and three things.
        unseen: one thing is a held-out pair; otherwise none is.
        key: remembered in the scene.

    Returns:
        Things in different cells, no two of the same colour and kind, sorted by place.
    """
    draw = rng.random()
    count = 1 + (draw >= mix[0]) + (draw >= mix[0] + mix[1])
    pairs = [_UNSEEN[int(rng.integers(len(_UNSEEN)))]] if unseen else []
    while len(pairs) < count:
        pair = _PAIRS[int(rng.integers(len(_PAIRS)))]
        if pair not in pairs:
            pairs.append(pair)
    places = rng.permutation(9)[:count]
    sizes = rng.integers(len(SIZES), size=count)
    things = (
        Object(int(place), color, kind, SIZES[size])
        for (color, kind), place, size in zip(pairs, places, sizes, strict=True)
    )
    return Scene(tuple(sorted(things)), key)


def scene_at(seed: int, index: int, *, split: str = "captions", mix: tuple[float, float, float] = DEFAULT_MIX) -> Scene:
    """The scene number ``index`` of a split; the split ``unseen`` holds a held-out pair in every scene.

    Raises:
        KeyError: unknown split.
    """
    key = (seed, SPLITS[split], index)
    return random_scene(np.random.default_rng(key), mix=mix, unseen=split == "unseen", key=key)
