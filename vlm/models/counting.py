"""Counting visual tokens without encoding anything: what :class:`~vlm.models.protocols.CountsTokens` gives.

The rules pickle, because loader workers count too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

from vlm.common.errors import ConfigError
from vlm.common.types import Features, MediumShape
from vlm.models.protocols import CountsTokens, JoinsFrames

Rule = Callable[[MediumShape], MediumShape]


@dataclass(frozen=True)
class SameCount:
    """As many tokens, in the same grid."""

    def __call__(self, shape: MediumShape) -> MediumShape:
        """``shape`` itself."""
        return shape


@dataclass(frozen=True)
class FixedCount:
    """Always ``tokens`` of a frame, or (``joins``) of a video."""

    tokens: int
    joins: bool = False

    def __call__(self, shape: MediumShape) -> MediumShape:
        """``shape`` with that number, and without a grid."""
        frames = 1 if self.joins else shape.frames
        return dataclasses.replace(shape, frames=frames, tokens=self.tokens, grid=None)


def rules_of(vision: Any, bridge: Sequence[Any]) -> tuple[Rule, ...]:
    """One rule per part, or none where a medium of so many frames always takes as many positions.

    Raises ConfigError: the number depends on the image, and a later part does not say what it makes of that.
    """
    parts = [vision, *bridge]
    if not any(isinstance(part, CountsTokens) and part.varies for part in parts):
        return ()
    rules: list[Rule] = []
    for part in parts:
        if isinstance(part, CountsTokens):
            rules.append(part.counter())
        elif part is vision:
            rules.append(FixedCount(part.num_tokens))
        else:
            name = type(part).__name__
            raise ConfigError(
                f"model.bridge: {name} does not say how many tokens leave where their number depends on the image",
                fix=f"give {name} the methods of CountsTokens (docs/extend/bridge.md)",
            )
    return tuple(rules)


def grid_of(value: Features | MediumShape) -> tuple[int, int]:
    """Rows and columns of a frame's tokens, the same for all media of ``value``; a square if nothing is said.

    Raises ConfigError: the tokens are not a square.
    """
    if isinstance(value, MediumShape):
        given, count = value.grid, value.tokens
    else:
        given = None if value.grid is None else tuple(value.grid[0].tolist())
        count = value.tokens.shape[2]
    side = isqrt(count)
    rows, columns = given or (side, side)
    if rows * columns != count:
        raise ConfigError(
            f"model.bridge: {count} tokens of a frame do not lie in rows and columns",
            fix="leave out the class token (keep_cls: false), and put this bridge before those that change the number",
        )
    return rows, columns


def joins_frames(bridge: Sequence[Any]) -> bool:
    """Whether a video leaves the chain as one frame."""
    return any(isinstance(part, JoinsFrames) and part.joins_frames for part in bridge)


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
