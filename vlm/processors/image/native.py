"""Images at their own aspect ratio and about their own size (arXiv:2409.12191, section 2.1)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlm.common.bounds import Count, Positive
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_image
from vlm.common.types import Prepared
from vlm.processors.image.decode import PIXEL_CAP, Opened
from vlm.processors.image.recipe import CLIP_MEAN, CLIP_STD, ImageRecipe, Level, Mean, levels_of

RATIO = 200
"""Largest ratio of the sides of an image."""


@register_image("native")
class NativeRecipe(ImageRecipe):
    """Scales height and width to multiples of ``multiple``, with ``least`` to ``most`` pixels; nothing is cropped."""

    fixed_size = False

    @dataclass
    class Config:
        """Options of ``image: {name: native}``.

        ``multiple`` is the side of a patch in pixels, times the patches on a side that become one token. More pixels
        are more tokens: an image takes up to ``most / multiple^2``.

        Example: ``image: {name: native, multiple: 28, most: 501760}``
        """

        multiple: Count = 28
        least: Count = 56 * 56
        most: Count = 28 * 28 * 1280
        mean: Sequence[Mean] = CLIP_MEAN
        std: Sequence[Positive] = CLIP_STD
        interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
        max_pixels: Count = PIXEL_CAP
        background: str | list[Level] = "white"  # under transparent pixels: white, black, mean, RGB; keep: no alpha

        pad_color = None

        def __post_init__(self) -> None:
            if len(self.mean) != 3 or len(self.std) != 3:
                raise ConfigError(f"image: mean {list(self.mean)}, std {list(self.std)}, expected three numbers each")
            if not self.multiple**2 <= self.most <= PIXEL_CAP or self.least > self.most:
                raise ConfigError(
                    f"image: {self.least} to {self.most} pixels in multiples of {self.multiple}",
                    fix=f"choose most between {self.multiple**2} and {PIXEL_CAP:,}, and least not above it",
                )

        @property
        def size(self) -> int:
            """Side of the largest square."""
            return math.isqrt(self.most) // self.multiple * self.multiple

    def __init__(self, config: Config) -> None:
        super().__init__(config)  # type: ignore[arg-type]
        self.options = config

    def __call__(self, source: Any, name: str = "", rng: random.Random | None = None) -> Prepared:  # type: ignore[override]
        """Decode and scale one image.

        Args:
            source: as for :class:`ImageRecipe`, but a tensor; or what this recipe returned before (passed through).
            name: what to call the image in an error when ``source`` is not a path.
            rng: nothing is drawn from it.

        Returns:
            ``[1, 3, height, width]`` float32 (uint8 after :meth:`as_uint8`).

        Raises:
            DataError: missing, empty, truncated, corrupt, unsupported, too large or too thin; the message names it.
        """
        from PIL import Image

        if isinstance(source, Prepared):
            return source
        if isinstance(source, tuple):
            raise DataError(f"image {name}: images side by side, which this recipe does not join")
        opened = Opened(source, name, self.config.max_pixels, self._background)
        image = opened.exact()
        self.transparent += opened.transparent
        self.decoded += opened.size[0] * opened.size[1]
        size = (image.height, image.width)
        if max(size) > RATIO * min(size):
            found = f"{size[1]} x {size[0]} pixels, whose sides differ by more than {RATIO} times"
            raise DataError(f"image {opened.label}: {found}", fix="crop it")
        height, width = fitted(*size, self.options.multiple, self.options.least, self.options.most)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling[self.config.interpolation.upper()])
        levels = levels_of(image)[None]
        return Prepared(levels if self._levels else self.normalize(levels), size)


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
