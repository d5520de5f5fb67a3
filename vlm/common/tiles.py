"""Which grid of tiles an image is divided into, and which part of the grid it fills; for recipes and bridges."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlm.common.errors import ConfigError

Grid = tuple[int, int]
"""Rows and columns of tiles."""
GRIDS: tuple[Grid, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""The published choice of grids."""


def check_grids(grids: Sequence[Sequence[int]], where: str) -> None:
    """Raises ConfigError: no grid, or one that is not two numbers; ``where`` names the part."""
    if not grids or any(len(grid) != 2 for grid in grids):
        text = f"{where}: grids {list(grids)}, expected pairs of rows and columns"
        raise ConfigError(text, fix="e.g. [[1, 2], [2, 1], [2, 2]]")


def best_grid(height: int, width: int, tile: int, grids: Sequence[Sequence[int]]) -> Grid:
    """The grid in which an image keeps most of its pixels, and of equal ones that with the least empty area.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        tile: side of a tile in pixels.
        grids: rows and columns of the grids to choose from, at least one.
    """
    best, most, least = (grids[0][0], grids[0][1]), 0, math.inf
    for rows, columns in grids:
        high, wide = rows * tile, columns * tile
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        empty = high * wide - kept
        if kept > most or (kept == most and empty < least):
            best, most, least = (rows, columns), kept, empty
    return best


def fitted(height: int, width: int, high: int, wide: int) -> tuple[int, int]:
    """Height and width of an image that is scaled to touch the sides of ``high`` x ``wide``, rounded up."""
    across, down = wide / width, high / height
    if across < down:
        return min(math.ceil(height * across), high), wide
    return high, min(math.ceil(width * down), wide)


def margins(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Empty rows at top and bottom each, and columns at left and right each, of ``rows`` x ``columns`` cells.

    The image ``height`` x ``width`` is in their middle and touches two sides.
    """
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2
