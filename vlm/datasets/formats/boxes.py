"""Boxes as text: ``{<x1><y1><x2><y2>}``, corners in hundredths of the image's width and height."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vlm.common.errors import DataError

Corners = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the original image."""


def corners_of(box: Any, size: tuple[float, float], where: str, slack: float = 1.0) -> Corners:
    """The corners of a box ``[x, y, width, height]``, cut to the image.

    Args:
        box: left, top, width, height in pixels.
        size: width and height of the original image in pixels.
        where: what to call the record in an error.
        slack: pixels by which the box may leave the image (annotators' rounding).

    Raises:
        DataError: not four finite numbers, no area, or outside the image.
    """
    values = list(box) if isinstance(box, Sequence) and not isinstance(box, str) else []
    if len(values) != 4 or not all(_number(v) for v in values):
        raise DataError(f"{where}: box {box!r} is not [x, y, width, height] in finite numbers")
    x, y, width, height = map(float, values)
    if width <= 0 or height <= 0:
        raise DataError(f"{where}: box {box!r} has no area")
    if x < -slack or y < -slack:
        raise DataError(
            f"{where}: box {box!r} starts outside the image", fix="correct the box, or raise build_info.slack"
        )
    if x + width > size[0] + slack or y + height > size[1] + slack or x >= size[0] or y >= size[1]:
        raise DataError(
            f"{where}: box {box!r} leaves the image, which is {size[0]:g} x {size[1]:g}",
            fix="check that image and box belong together, or raise build_info.slack",
        )
    return max(x, 0.0), max(y, 0.0), min(x + width, size[0]), min(y + height, size[1])


def box_text(corners: Corners, size: tuple[float, float]) -> str:
    """``{<12><30><55><88>}``: corners divided by the image's size, times 100, truncated, as published."""
    scaled = [int(c / size[k % 2] * 100) for k, c in enumerate(corners)]
    return "{" + "".join(f"<{s}>" for s in scaled) + "}"


def image_size(record: dict[str, Any], where: str) -> tuple[float, float]:
    """``width`` and ``height`` of an image's record. Raises DataError unless both are positive numbers."""
    width: Any = record.get("width")
    height: Any = record.get("height")
    if not (_number(width) and _number(height) and width > 0 and height > 0):
        raise DataError(f"{where}: width and height of the image are {width!r} and {height!r}, expected numbers > 0")
    return float(width), float(height)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
