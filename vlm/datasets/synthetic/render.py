"""Scene -> image. Antialiased figures on a shaded ground, with jitter in place, turn, scale and colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vlm.datasets.synthetic.scene import COLORS, Scene

IMAGE_SIZE = 64
RADIUS = {"small": 0.105, "large": 0.16}
"""Half of a figure's extent as a share of the image's side."""

_OVER = 4  # the masks are drawn this many times larger and averaged down


@dataclass(frozen=True)
class Figure:
    """What the painter needs: kind, RGB 0..255, radius and centre as shares of the side, turn in radians."""

    kind: str
    rgb: tuple[int, int, int]
    radius: float
    center: tuple[float, float]
    turn: float


def _star() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        radius, angle = (1.12, 0.45)[i % 2], math.pi * i / 5 - math.pi / 2
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart() -> list[tuple[float, float]]:
    points = []
    for i in range(24):
        t = 2 * math.pi * i / 24
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16, -(y + 2.5) / 15))
    return points


_C = 0.36
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "circle": [(math.cos(math.pi * i / 16), math.sin(math.pi * i / 16)) for i in range(32)],
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0, -1.02), (1.02, 0.82), (-1.02, 0.82)],
    "star": _star(),
    "heart": _heart(),
    "cross": [
        (-_C, -1),
        (_C, -1),
        (_C, -_C),
        (1, -_C),
        (1, _C),
        (_C, _C),
        (_C, 1),
        (-_C, 1),
        (-_C, _C),
        (-1, _C),
        (-1, -_C),
        (-_C, -_C),
    ],
}
_STROKES: dict[str, list[tuple[tuple[float, float], tuple[float, float]]]] = {
    "A": [((-0.75, 0.9), (0, -0.9)), ((0, -0.9), (0.75, 0.9)), ((-0.45, 0.3), (0.45, 0.3))],
    "E": [((-0.6, -0.9), (-0.6, 0.9)), ((-0.6, -0.9), (0.65, -0.9)), ((-0.6, 0), (0.5, 0)), ((-0.6, 0.9), (0.65, 0.9))],
    "H": [((-0.7, -0.9), (-0.7, 0.9)), ((0.7, -0.9), (0.7, 0.9)), ((-0.7, 0), (0.7, 0))],
    "L": [((-0.55, -0.9), (-0.55, 0.9)), ((-0.55, 0.9), (0.65, 0.9))],
    "T": [((-0.8, -0.85), (0.8, -0.85)), ((0, -0.85), (0, 0.9))],
    "Z": [((-0.7, -0.85), (0.7, -0.85)), ((0.7, -0.85), (-0.7, 0.85)), ((-0.7, 0.85), (0.7, 0.85))],
}
_STROKE = 0.2  # half of a letter's line width


def _bar(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """The rectangle of a stroke, lengthened by half of its width at both ends so that corners close."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    ux, uy = dx / length * _STROKE, dy / length * _STROKE
    (ax, ay), (bx, by) = (start[0] - ux, start[1] - uy), (end[0] + ux, end[1] + uy)
    return [(ax - uy, ay + ux), (bx - uy, by + ux), (bx + uy, by - ux), (ax + uy, ay - ux)]


_OUTLINES = {kind: [points] for kind, points in _POLYGONS.items()} | {
    kind: [_bar(*stroke) for stroke in strokes] for kind, strokes in _STROKES.items()
}


def jitter(kind: str, rgb: tuple[int, int, int], size: str, place: int, rng: np.random.Generator) -> Figure:
    """A figure of this kind, colour, size and place with small random deviations in all but the kind."""
    a, b, c, d, e, f, g = rng.uniform(-1, 1, size=7)
    shade = 1 + 0.08 * e
    tint = (shade + 0.04 * f, shade + 0.04 * g, shade - 0.02 * (f + g))
    red, green, blue = (int(min(255, max(0, round(v * t)))) for v, t in zip(rgb, tint, strict=True))
    center = ((place % 3 + 0.5) / 3 + 0.022 * a, (place // 3 + 0.5) / 3 + 0.022 * b)
    return Figure(kind, (red, green, blue), RADIUS[size] * (1 + 0.07 * c), center, 0.22 * d)


def paint(figures: Sequence[Figure], rng: np.random.Generator, size: int = IMAGE_SIZE) -> Image.Image:
    """Paint figures on a fresh ground; RGB image of ``size`` x ``size`` pixels."""
    image = _ground(rng, size)
    for figure in figures:
        half = math.ceil(figure.radius * size * 1.25) + 1
        cx, cy = figure.center[0] * size, figure.center[1] * size
        left, top = int(cx) - half, int(cy) - half
        mask = Image.new("L", (2 * half * _OVER, 2 * half * _OVER))
        draw = ImageDraw.Draw(mask)
        scale = figure.radius * size * _OVER
        cos, sin = math.cos(figure.turn) * scale, math.sin(figure.turn) * scale
        ox, oy = (cx - left) * _OVER, (cy - top) * _OVER
        for outline in _OUTLINES[figure.kind]:
            draw.polygon([(ox + cos * x - sin * y, oy + sin * x + cos * y) for x, y in outline], fill=255)
        image.paste(figure.rgb, (left, top), mask.reduce(_OVER))
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels + rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(1, 5))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _ground(rng: np.random.Generator, size: int) -> Image.Image:
    """A dark, nearly grey plane that gets brighter in a random direction."""
    angle, base, slope = rng.uniform(0, 2 * math.pi), rng.uniform(30, 95), rng.uniform(0, 25)
    line = np.linspace(-1, 1, size, dtype=np.float32) * np.float32(slope)
    plane = np.float32(base) + line[None, :] * math.cos(angle) + line[:, None] * math.sin(angle)
    tint = rng.uniform(0.93, 1.07, size=3).astype(np.float32)
    return Image.fromarray(np.clip(plane[:, :, None] * tint, 0, 255).astype(np.uint8))


def render(scene: Scene, size: int = IMAGE_SIZE) -> Image.Image:
    """The image of a scene: RGB, ``size`` x ``size``; the same scene key gives the same pixels."""
    rng = np.random.default_rng((*scene.key, 1))
    figures = [jitter(thing.kind, COLORS[thing.color], thing.size, thing.place, rng) for thing in scene.things]
    return paint(figures, rng, size)
