"""Images divided into tiles that are media of their own, with text between them (arXiv:2408.12637, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vlm.common.bounds import Count, Positive
from vlm.common.errors import ConfigError
from vlm.common.registry import register_image
from vlm.common.types import Prepared, Split
from vlm.processors.image.recipe import Mean
from vlm.processors.image.varied import VariedRecipe

if TYPE_CHECKING:
    from PIL import Image as PILImage

LONGEST = 4096
"""Longest side that an image is ever enlarged to."""


@register_image("split")
class SplitRecipe(VariedRecipe):
    """Enlarges an image to whole tiles of ``size`` pixels, and shows each tile and then the image as one tile.

    Each is a medium ``[1, 3, size, size]`` after a text that says what it is. With 4 x 4 tiles an image is 17 media.
    """

    splits = True
    makes_frames = False

    @dataclass
    class Config(VariedRecipe.Config):
        """Options of ``image: {name: split}``.

        ``longest`` is the longer side before it is rounded up to whole tiles; the shorter one keeps the aspect ratio.
        An image that becomes one tile, or any with ``divide: false``, is shown once. The texts may hold special tokens
        and, for a tile, ``{row}`` and ``{column}`` counted from 1.

        Example: ``image: {name: split, size: 512, longest: 2048, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}``
        """

        size: Count = 364
        longest: Count = 1456
        divide: bool = True
        mean: Sequence[Mean] = (0.5, 0.5, 0.5)
        std: Sequence[Positive] = (0.5, 0.5, 0.5)
        interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "lanczos"
        tile_text: str = "<fake_token_around_image><row_{row}_col_{column}>"  # before a tile
        row_end: str = "\n"  # after a row of tiles
        whole_after_tiles: str = "\n"  # before the text of the whole image, where tiles precede it
        whole_text: str = "<fake_token_around_image><global-img>"  # before the whole image
        end: str = "<fake_token_around_image>"  # after it

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.size <= self.longest <= LONGEST:
                raise ConfigError(f"image: longest is {self.longest}, allowed: size ({self.size}) to {LONGEST}")
            try:
                self.tile_text.format(row=1, column=1)
            except (KeyError, IndexError, ValueError) as error:
                raise ConfigError(f"image: tile_text {self.tile_text!r} has a field besides row and column") from error

    def made(self, image: PILImage.Image, label: str) -> Split:
        """Texts and tiles in order; see :class:`VariedRecipe`."""
        whole = self.resized(image, *enlarged(image.height, image.width, self.options.longest))
        side, pieces = self.options.size, list[str | Prepared]()
        if self.options.divide:
            whole = self.resized(whole, *whole_tiles(whole.height, whole.width, side))
            rows, columns = whole.height // side, whole.width // side
            for row in range(rows if rows * columns > 1 else 0):
                for column in range(columns):
                    box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
                    text = self.options.tile_text.format(row=row + 1, column=column + 1)
                    pieces += [text, self.prepared([whole.crop(box)], image)]
                pieces.append(self.options.row_end)
        before = self.options.whole_after_tiles if pieces else ""
        last = self.prepared([self.resized(whole, side, side)], image)
        return Split((*pieces, before + self.options.whole_text, last, self.options.end))


def enlarged(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width with the longer side ``longest``; the other is rounded down, then up to an even number."""
    if width >= height:
        short = int(longest / (width / height))
        return max(short + short % 2, 1), longest
    short = int(longest * (width / height))
    return longest, max(short + short % 2, 1)


def whole_tiles(height: int, width: int, side: int) -> tuple[int, int]:
    """The next larger height and width that are multiples of ``side``, the longer side first."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return math.ceil(int(width / ratio) / side) * side, width
    height = math.ceil(height / side) * side
    return height, math.ceil(int(height * ratio) / side) * side
