"""The geometry of an image recipe: crop, padding and size, as numbers."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Plan:
    """Steps in order: crop to ``box``, pad to a square, resize to ``size``, crop at ``corner``, mirror."""

    size: Size  # width and height after resizing
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom in the image; None: the whole image
    pad: int = 0  # side of the padded square; 0: none
    corner: Size | None = None  # left, top of the final square in the resized image, or None
    flip: bool = False

    def reduction(self, size: Size) -> int:
        """The largest of 8, 4, 2, 1 by which an image of ``size`` can shrink and still be at least the final size."""
        width, height = size if self.box is None else (self.box[2] - self.box[0], self.box[3] - self.box[1])
        if self.pad:
            width = height = self.pad
        return next((k for k in (8, 4, 2) if width // k >= self.size[0] and height // k >= self.size[1]), 1)

    def reduced(self, factor: int) -> Plan:
        """The plan for the image shrunk by ``factor``."""
        box = None
        if self.box is not None:
            left, top = round(self.box[0] / factor), round(self.box[1] / factor)
            width, height = (self.box[2] - self.box[0]) // factor, (self.box[3] - self.box[1]) // factor
            box = (left, top, left + width, top + height)
        return replace(self, box=box, pad=-(-self.pad // factor))


def centre(size: Size, side: int, odd: Literal["round", "floor"]) -> Plan:
    """Resize the shorter side to ``side``, then crop the central square.

    The longer side is rounded down. Half of an odd margin is rounded to even by torchvision (``odd="round"``) and
    down by transformers (``"floor"``).
    """
    short, long = min(size), max(size)
    stretched = int(side * long / short)
    width, height = (side, stretched) if size[0] <= size[1] else (stretched, side)
    half = round if odd == "round" else math.floor
    return Plan((width, height), corner=(int(half((width - side) / 2)), int(half((height - side) / 2))))


def plan_crop(
    size: Size, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """A random box: its share of the area is in ``scale``, its width / height in ``ratio`` (log-uniform).

    After ten attempts that do not fit: the largest central box of an allowed ratio, as in torchvision.
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w = max(round(height * ratio[1]), 1) if width / height > ratio[1] else width
    h = max(round(width / ratio[0]), 1) if width / height < ratio[0] else height
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
