"""Labelled images for the vision stages. Half of the figures wear a random colour and get no colour label.

A figure in a named colour is never one of the held-out pairs; random colours keep kind and colour apart.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from vlm.datasets.synthetic.language import NOTE_WORDS
from vlm.datasets.synthetic.render import IMAGE_SIZE, RADIUS, Figure, jitter, paint
from vlm.datasets.synthetic.scene import COLORS, COLUMNS, COUNTS, HELD_OUT, KINDS, ROWS, SIZES

IGNORE = -100
EMPTY = len(KINDS)
TARGETS = {"kind": len(KINDS) + 1, "color": len(COLORS), "size": len(SIZES), "place": 9, "order": 3}
"""What every patch is asked, and the number of classes; ``kind`` has one more class for no figure."""

NOTE_VOCABULARY = (*COUNTS[1:], *SIZES, *COLORS, *KINDS, *ROWS, *COLUMNS, "nothing")
_WORD = {word: i for i, word in enumerate(NOTE_VOCABULARY)}
_NAMES = tuple(COLORS)
_SEEN = {kind: [i for i, color in enumerate(_NAMES) if (color, kind) not in HELD_OUT] for kind in KINDS}


@dataclass
class Drawn:
    """One figure with the classes of its kind, colour (or ``IGNORE``), size, place and order (or ``IGNORE``)."""

    figure: Figure
    kind: int
    color: int
    size: int
    place: int
    order: int


def random_rgb(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour that stands out from the dark grey ground."""
    hue, saturation, value = rng.random(), rng.uniform(0.0, 1.0), rng.uniform(0.7, 1.0)
    r, g, b = colorsys.hsv_to_rgb(hue, saturation, value)
    return int(255 * r), int(255 * g), int(255 * b)


def draw_figures(rng: np.random.Generator, dense: bool, recolor: float = 0.5) -> list[Drawn]:
    """Figures in order of place: one to three, or a ``dense`` image of up to nine (no order label)."""
    count = int(rng.integers(4, 10)) if dense else int(rng.choice(3, p=(0.3, 0.4, 0.3))) + 1
    figures = []
    for order, place in enumerate(sorted(rng.permutation(9)[:count].tolist())):
        kind, size = int(rng.integers(len(KINDS))), int(rng.integers(len(SIZES)))
        if rng.random() < recolor:
            color, rgb = IGNORE, random_rgb(rng)
        else:
            color = _SEEN[KINDS[kind]][int(rng.integers(len(_SEEN[KINDS[kind]])))]
            rgb = COLORS[_NAMES[color]]
        figure = jitter(KINDS[kind], rgb, SIZES[size], place, rng)
        figures.append(Drawn(figure, kind, color, size, place, IGNORE if dense else order))
    return figures


def patch_targets(figures: list[Drawn], grid: int) -> np.ndarray:
    """``[grid * grid, 5]`` classes in the order of ``TARGETS``; patches at the rim of a figure are ignored."""
    step = 1 / grid
    centers = (np.arange(grid) + 0.5) * step
    targets = np.full((grid, grid, len(TARGETS)), IGNORE, dtype=np.int64)
    near = np.full((grid, grid), np.inf)
    for drawn in figures:
        x, y = drawn.figure.center
        distance = np.hypot(centers[None, :] - x, centers[:, None] - y)
        inside = (distance < max(0.093, 0.6 * RADIUS[SIZES[drawn.size]])) & (distance < near)
        near = np.minimum(near, distance)
        targets[inside] = (drawn.kind, drawn.color, drawn.size, drawn.place, drawn.order)
    targets[near > 0.24, 0] = EMPTY
    return targets.reshape(grid * grid, len(TARGETS))


def note_targets(figures: list[Drawn]) -> np.ndarray:
    """``[NOTE_WORDS]`` classes in ``NOTE_VOCABULARY``; the colour slot of a recoloured figure is ignored."""
    slots = [_WORD[COUNTS[len(figures)]]]
    for drawn in figures:
        color = IGNORE if drawn.color == IGNORE else _WORD[_NAMES[drawn.color]]
        row, column = ROWS[drawn.place // 3], COLUMNS[drawn.place % 3]
        slots += [_WORD[row], _WORD[column], _WORD[SIZES[drawn.size]], color, _WORD[KINDS[drawn.kind]]]
    slots += [_WORD["nothing"]] * (NOTE_WORDS - len(slots))
    return np.array(slots, dtype=np.int64)


def image(figures: list[Drawn], rng: np.random.Generator) -> np.ndarray:
    """``[h, w, 3]`` uint8."""
    return np.asarray(paint([drawn.figure for drawn in figures], rng, IMAGE_SIZE))


def image_batch(
    rng: np.random.Generator, count: int, dense: float, grid: int, recolor: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images ``[n, h, w, 3]`` uint8, patch targets ``[n, patches, 5]``, note targets ``[n, NOTE_WORDS]``.

    Dense images have no note: their note targets are all ``IGNORE``.
    """
    images, patches, notes = [], [], []
    for _ in range(count):
        is_dense = bool(rng.random() < dense)
        figures = draw_figures(rng, is_dense, recolor)
        images.append(image(figures, rng))
        patches.append(patch_targets(figures, grid))
        notes.append(np.full(NOTE_WORDS, IGNORE, dtype=np.int64) if is_dense else note_targets(figures))
    return np.stack(images), np.stack(patches), np.stack(notes)
