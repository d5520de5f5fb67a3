"""Any resolution: the whole image small, and the image divided into tiles (arXiv:2408.03326, section 3)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlm.common.bounds import Count, Positive
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_image
from vlm.common.types import Prepared
from vlm.models.counting import GRIDS, best_grid, check_grids, fitted
from vlm.processors.image.decode import PIXEL_CAP, Opened
from vlm.processors.image.recipe import CLIP_MEAN, CLIP_STD, ImageRecipe, Level, Mean


@register_image("tiles")
class TilesRecipe(ImageRecipe):
    """One medium per image: the image at ``size`` x ``size``, then its tiles row by row, as frames.

    The image is scaled to fit into the best of the ``grids`` of tiles, in the middle of a black area. The bridge
    ``tile_rows`` puts the tiles together again.
    """

    fixed_size = makes_frames = False

    @dataclass
    class Config:
        """Options of ``image: {name: tiles}``.

        ``size`` is the side of a tile in pixels, ``grids`` are rows and columns of tiles to choose from.

        Example: ``image: {name: tiles, size: 336, grids: [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]}``
        """

        size: Count = 336
        grids: list[list[Count]] = field(default_factory=lambda: [list(grid) for grid in GRIDS])
        mean: Sequence[Mean] = CLIP_MEAN
        std: Sequence[Positive] = CLIP_STD
        interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
        max_pixels: Count = PIXEL_CAP
        background: str | list[Level] = "white"  # under transparent pixels: white, black, mean, RGB; keep: no alpha

        pad_color = (0, 0, 0)

        def __post_init__(self) -> None:
            if len(self.mean) != 3 or len(self.std) != 3:
                raise ConfigError(f"image: mean {list(self.mean)}, std {list(self.std)}, expected three numbers each")
            check_grids(self.grids, "image")

    def __init__(self, config: Config) -> None:
        super().__init__(config)  # type: ignore[arg-type]
        self.options = config

    def __call__(self, source: Any, name: str = "", rng: random.Random | None = None) -> Prepared:  # type: ignore[override]
        """Decode and divide one image.

        Args:
            source: as for :class:`ImageRecipe`, but a tensor; or what this recipe returned before (passed through).
            name: what to call the image in an error when ``source`` is not a path.
            rng: nothing is drawn from it.

        Returns:
            ``[1 + tiles, 3, size, size]`` float32 (uint8 after :meth:`as_uint8`), with the image's size.

        Raises:
            DataError: missing, empty, truncated, corrupt, unsupported or too large; the message names it.
        """
        import numpy as np
        import torch
        from PIL import Image

        if isinstance(source, Prepared):
            return source
        if isinstance(source, tuple | torch.Tensor):
            found = "images side by side" if isinstance(source, tuple) else "a tensor, whose tiles are not known"
            raise DataError(f"image {name}: {found}; the recipe tiles reads a path, bytes, PIL image or array")
        opened = Opened(source, name, self.config.max_pixels, self._background)
        image = opened.exact()
        self.transparent += opened.transparent
        self.decoded += opened.size[0] * opened.size[1]
        side, (width, height) = self.options.size, image.size
        rows, columns = best_grid(height, width, side, self.options.grids)
        high, wide = fitted(height, width, rows * side, columns * side)
        kind = Image.Resampling[self.config.interpolation.upper()]
        canvas = Image.new("RGB", (columns * side, rows * side), self._color)
        canvas.paste(image.resize((wide, high), kind), ((canvas.width - wide) // 2, (canvas.height - high) // 2))
        boxes = [(x * side, y * side, (x + 1) * side, (y + 1) * side) for y in range(rows) for x in range(columns)]
        tiles = [image.resize((side, side), kind), *(canvas.crop(box) for box in boxes)]
        levels = torch.from_numpy(np.stack([np.asarray(tile).transpose(2, 0, 1) for tile in tiles]))
        return Prepared(levels if self._levels else self.normalize(levels), (height, width))
