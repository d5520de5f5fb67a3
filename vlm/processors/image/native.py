"""Images at their own aspect ratio and about their own size (arXiv:2409.12191, section 2.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm.common.bounds import Count
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_image
from vlm.common.types import Prepared
from vlm.processors.image.decode import PIXEL_CAP
from vlm.processors.image.varied import VariedRecipe

if TYPE_CHECKING:
    from PIL import Image as PILImage

RATIO = 200
"""Largest ratio of the sides of an image."""


@register_image("native")
class NativeRecipe(VariedRecipe):
    """Scales height and width to multiples of ``multiple``, with ``least`` to ``most`` pixels; nothing is cropped."""

    @dataclass
    class Config(VariedRecipe.Config):
        """Options of ``image: {name: native}``.

        ``multiple`` is the side of a patch in pixels, times the patches on a side that become one token. More pixels
        are more tokens: an image takes up to ``most / multiple^2``.

        Example: ``image: {name: native, multiple: 28, most: 501760}``
        """

        multiple: Count = 28
        least: Count = 56 * 56
        most: Count = 28 * 28 * 1280

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.multiple**2 <= self.most <= PIXEL_CAP or self.least > self.most:
                raise ConfigError(
                    f"image: {self.least} to {self.most} pixels in multiples of {self.multiple}",
                    fix=f"choose most between {self.multiple**2} and {PIXEL_CAP:,}, and least not above it",
                )

        @property
        def size(self) -> int:
            """Side of the largest square."""
            return math.isqrt(self.most) // self.multiple * self.multiple

    def made(self, image: PILImage.Image, label: str) -> Prepared:
        """``[1, 3, height, width]``; see :class:`VariedRecipe`."""
        if max(image.size) > RATIO * min(image.size):
            found = f"{image.width} x {image.height} pixels, whose sides differ by more than {RATIO} times"
            raise DataError(f"image {label}: {found}", fix="crop it")
        limits = (self.options.multiple, self.options.least, self.options.most)
        return self.prepared([self.resized(image, *fitted(image.height, image.width, *limits))], image)


def fitted(height: int, width: int, multiple: int, least: int, most: int) -> tuple[int, int]:
    """Height and width as multiples of ``multiple``, of about the same ratio, with ``least`` to ``most`` pixels."""
    rows, columns = round(height / multiple), round(width / multiple)
    if rows * columns * multiple**2 > most:
        factor = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(side / factor / multiple)) for side in (height, width))
    elif rows * columns * multiple**2 < least:
        factor = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * factor / multiple) for side in (height, width))
    return rows * multiple, columns * multiple
