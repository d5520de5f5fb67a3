"""Boxes: reading them from answers in the forms that models write, and how far two of them agree."""

from __future__ import annotations

import re
from collections.abc import Callable

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2: left, top, right, bottom."""
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)

_NUMBER = r"\s*(-?\d+(?:\.\d+)?|-?\.\d+)\s*"
_LIST = re.compile(r"[\[(]" + ",".join([_NUMBER] * 4) + r"[\])]")
_POINTS = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,?\s*\({_NUMBER},{_NUMBER}\)")
_BRACES = re.compile(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}")
_FLOATS = re.compile(r"\[" + ",".join([r"\s*(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]")


def iou(a: Box, b: Box, plus_one: bool = False) -> float:
    """Intersection over union of two boxes; 0 if neither has an area.

    Args:
        a: one box; it counts as no area where a corner is on the wrong side.
        b: another.
        plus_one: corners are pixels that belong to the box, so that each side is longer by 1.
    """
    more = 1 if plus_one else 0
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + more)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + more)
    inner = width * height
    areas = [(box[2] - box[0] + more) * (box[3] - box[1] + more) for box in (a, b)]
    union = areas[0] + areas[1] - inner
    return inner / union if union else 0.0


def has_center(outer: Box, inner: Box) -> bool:
    """Whether the center of ``inner`` is in ``outer``, its border included."""
    x, y = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    return outer[0] <= x <= outer[2] and outer[1] <= y <= outer[3]


def scaled(box: Box, width: float, height: float) -> Box:
    """A box in fractions of an image, in its pixels."""
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def read_box(text: str) -> Box | None:
    """The first box in a text, in fractions of the image's width and height; None: there is none.

    Read are ``{<12><30><55><88>}`` (hundredths), ``[0.12, 0.3, 0.55, 0.88]`` in square or round brackets
    (fractions, LLaVA and Shikra) and ``(120,300),(550,880)`` (Qwen-VL). Numbers in brackets are thousandths if one of
    them is above 1. Values outside the image give None.
    """
    found = [(match, unit) for pattern, unit in _FORMS if (match := pattern.search(text.replace("<unk>", "")))]
    if not found:
        return None
    match, unit = min(found, key=lambda pair: pair[0].start())
    values = tuple(float(value) for value in match.groups())
    whole = unit(values)
    box = values[0] / whole, values[1] / whole, values[2] / whole, values[3] / whole
    return box if all(0 <= value <= 1 for value in box) else None


def read_hundredths(text: str) -> Box | None:
    """The box of an answer that begins with ``{<12><30><55><88>}`` and has no other number, in fractions; else None.

    ``<unk>`` and spaces do not count. Values may exceed 100.
    """
    cleaned = without_spaces(text)
    if not has_hundredths(text) or len(re.findall(r"\d+", cleaned)) != 4:
        return None
    a, b, c, d = (int(value) / 100.0 for value in re.findall(r"\d+", cleaned))
    return a, b, c, d


def has_hundredths(text: str) -> bool:
    """Whether an answer begins with ``{<12><30><55><88>}``, whatever comes then."""
    return _BRACES.match(without_spaces(text)) is not None


def read_floats(text: str) -> Box | None:
    """The first four numbers in square brackets, as they are; None: there are none."""
    match = _FLOATS.search(text)
    if match is None:
        return None
    a, b, c, d = (float(value) for value in match.groups())
    return a, b, c, d


def without_spaces(text: str) -> str:
    """A text without ``<unk>``, spaces, and white space around it."""
    return text.replace("<unk>", "").replace(" ", "").strip()


def _hundred(values: tuple[float, ...]) -> float:
    return 100.0


def _one_or_thousand(values: tuple[float, ...]) -> float:
    return 1000.0 if max(values) > 1 else 1.0


_SPACED = re.compile(_BRACES.pattern.replace("<", r"\s*<\s*").replace(">", r"\s*>\s*"))
_FORMS: tuple[tuple[re.Pattern[str], Callable[[tuple[float, ...]], float]], ...] = (
    (_SPACED, _hundred), (_LIST, _one_or_thousand), (_POINTS, _one_or_thousand),
)  # fmt: skip
