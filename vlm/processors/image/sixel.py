"""Images as sixel, the graphics of DEC's terminals that many of today show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm.processors.image.decode import decode

if TYPE_CHECKING:
    import numpy as np

COLOURS = 256
"""Colours of a palette at most; terminals have at least so many registers."""
BAND = 6
"""Rows that one character holds."""


def as_sixel(source: Any, size: tuple[int, int]) -> str:
    """An image as a sixel sequence, no larger than ``size`` (width, height) in pixels.

    Raises DataError: see :func:`vlm.processors.image.decode.decode`.
    """
    import numpy as np

    image = decode(source).copy()
    image.thumbnail(size)
    reduced = image.quantize(COLOURS)
    indices = np.asarray(reduced)
    palette = np.asarray(reduced.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    used = np.unique(indices)
    percent = (palette[used] * 100 + 127) // 255
    height, width = indices.shape
    head = f'\x1bP0;1;0q"1;1;{width};{height}'
    colours = "".join(f"#{n};2;{r};{g};{b}" for n, (r, g, b) in zip(used, percent, strict=True))
    bands = "-".join(_band(indices[top : top + BAND]) for top in range(0, height, BAND))
    return f"{head}{colours}{bands}\x1b\\"


def _band(rows: np.ndarray) -> str:
    """Up to six rows ``[<=6, w]`` of palette indices: for each colour, the pixels that have it."""
    import numpy as np

    weights = 1 << np.arange(len(rows))[:, None]
    layers = ((colour, ((rows == colour) * weights).sum(0) + 63) for colour in np.unique(rows))
    return "$".join(f"#{colour}{_runs(values)}" for colour, values in layers)


def _runs(values: np.ndarray) -> str:
    """The characters, runs of more than three as ``!count``; empty columns at the end are left out."""
    import numpy as np

    starts = np.flatnonzero(np.diff(values, prepend=values[0] + 1))
    lengths = np.diff(starts, append=len(values))
    runs = list(zip(values[starts].tolist(), lengths.tolist(), strict=True))
    if runs[-1][0] == 63:
        runs.pop()
    return "".join(f"!{count}{chr(value)}" if count > 3 else chr(value) * count for value, count in runs)
