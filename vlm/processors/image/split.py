"""Images divided into tiles that are media of their own, with text between them (arXiv:2408.12637, section 3.1)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vlm.common.bounds import Count, Positive
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_image
from vlm.common.types import Prepared, Split
from vlm.processors.image.decode import PIXEL_CAP, Opened
from vlm.processors.image.recipe import ImageRecipe, Level, Mean, levels_of

if TYPE_CHECKING:
    from PIL import Image as PILImage

LONGEST = 4096
"""Longest side that an image is ever enlarged to."""


@register_image("split")
class SplitRecipe(ImageRecipe):
    """Enlarges an image to whole tiles of ``size`` pixels, and shows each tile and then the image as one tile.

    Each is a medium ``[1, 3, size, size]`` after a text that says what it is. With 4 x 4 tiles an image is 17 media.
    """

    splits = True
    fixed_size = makes_frames = False

    @dataclass
    class Config:
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
        max_pixels: Count = PIXEL_CAP
        background: str | list[Level] = "white"  # under transparent pixels: white, black, mean, RGB; keep: no alpha
        tile_text: str = "<fake_token_around_image><row_{row}_col_{column}>"  # before a tile
        row_end: str = "\n"  # after a row of tiles
        whole_after_tiles: str = "\n"  # before the text of the whole image, where tiles precede it
        whole_text: str = "<fake_token_around_image><global-img>"  # before the whole image
        end: str = "<fake_token_around_image>"  # after it

        pad_color = None

        def __post_init__(self) -> None:
            if len(self.mean) != 3 or len(self.std) != 3:
                raise ConfigError(f"image: mean {list(self.mean)}, std {list(self.std)}, expected three numbers each")
            if not self.size <= self.longest <= LONGEST:
                raise ConfigError(f"image: longest is {self.longest}, allowed: size ({self.size}) to {LONGEST}")
            try:
                self.tile_text.format(row=1, column=1)
            except (KeyError, IndexError, ValueError) as error:
                raise ConfigError(f"image: tile_text {self.tile_text!r} has a field besides row and column") from error

    def __init__(self, config: Config) -> None:
        super().__init__(config)  # type: ignore[arg-type]
        self.options = config

    def __call__(self, source: Any, name: str = "", rng: random.Random | None = None) -> Split:  # type: ignore[override]
        """Decode and divide one image.

        Args:
            source: as for :class:`ImageRecipe`, but a tensor; or what this recipe returned before (passed through).
            name: what to call the image in an error when ``source`` is not a path.
            rng: nothing is drawn from it.

        Returns:
            Texts and tiles in order; each tile ``[1, 3, size, size]`` float32 (uint8 after :meth:`as_uint8`).

        Raises:
            DataError: missing, empty, truncated, corrupt, unsupported or too large; the message names it.
        """
        if isinstance(source, Split):
            return source
        if isinstance(source, tuple):
            raise DataError(f"image {name}: images side by side, which a recipe with tiles does not join")
        opened = Opened(source, name, self.config.max_pixels, self._background)
        image = opened.exact()
        self.transparent += opened.transparent
        self.decoded += opened.size[0] * opened.size[1]
        size = (image.height, image.width)
        image = self._resized(image, *enlarged(*size, self.options.longest))
        side, pieces = self.options.size, list[str | Prepared]()
        if self.options.divide:
            image = self._resized(image, *whole_tiles(image.height, image.width, side))
            rows, columns = image.height // side, image.width // side
            for row in range(rows if rows * columns > 1 else 0):
                for column in range(columns):
                    box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
                    text = self.options.tile_text.format(row=row + 1, column=column + 1)
                    pieces += [text, self._prepared(image.crop(box), size)]
                pieces.append(self.options.row_end)
        before = self.options.whole_after_tiles if pieces else ""
        whole = self._prepared(self._resized(image, side, side), size)
        return Split((*pieces, before + self.options.whole_text, whole, self.options.end))

    def _resized(self, image: PILImage.Image, height: int, width: int) -> PILImage.Image:
        from PIL import Image

        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling[self.config.interpolation.upper()])

    def _prepared(self, tile: PILImage.Image, size: tuple[int, int]) -> Prepared:
        levels = levels_of(tile)[None]
        return Prepared(levels if self._levels else self.normalize(levels), size)


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
