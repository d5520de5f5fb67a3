"""Any resolution: the whole image small, and the image divided into tiles (arXiv:2408.03326, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm.common.bounds import Count
from vlm.common.registry import register_image
from vlm.common.types import Prepared
from vlm.models.counting import GRIDS, best_grid, check_grids, fitted
from vlm.processors.image.varied import VariedRecipe

if TYPE_CHECKING:
    from PIL import Image as PILImage


@register_image("tiles")
class TilesRecipe(VariedRecipe):
    """One medium per image: the image at ``size`` x ``size``, then its tiles row by row, as frames.

    The image is scaled to fit into the best of the ``grids`` of tiles, in the middle of a black area. The bridge
    ``tile_rows`` puts the tiles together again.
    """

    makes_frames = False

    @dataclass
    class Config(VariedRecipe.Config):
        """Options of ``image: {name: tiles}``.

        ``size`` is the side of a tile in pixels, ``grids`` are rows and columns of tiles to choose from.

        Example: ``image: {name: tiles, size: 336, grids: [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]}``
        """

        size: Count = 336
        grids: list[list[Count]] = field(default_factory=lambda: [list(grid) for grid in GRIDS])

        pad_color = (0, 0, 0)

        def __post_init__(self) -> None:
            super().__post_init__()
            check_grids(self.grids, "image")

    def made(self, image: PILImage.Image, label: str) -> Prepared:
        """``[1 + tiles, 3, size, size]``; see :class:`VariedRecipe`."""
        from PIL import Image

        side = self.options.size
        rows, columns = best_grid(image.height, image.width, side, self.options.grids)
        within = self.resized(image, *fitted(image.height, image.width, rows * side, columns * side))
        canvas = Image.new("RGB", (columns * side, rows * side), self._color)
        canvas.paste(within, ((canvas.width - within.width) // 2, (canvas.height - within.height) // 2))
        boxes = [(x * side, y * side, (x + 1) * side, (y + 1) * side) for y in range(rows) for x in range(columns)]
        return self.prepared([self.resized(image, side, side), *(canvas.crop(box) for box in boxes)], image)
