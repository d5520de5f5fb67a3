"""Line charts as inline SVG. Colours come from the page's CSS variables, so they follow light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from markupsafe import Markup

from vlm.pages.parts import render

WIDTH, WIDE, HEIGHT = 560, 1140, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 12, 30
MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One line: ``points`` are (step, value); ``style`` is a CSS class (``line``, ``faint``, ``second``).

    ``spike`` has dots only; neither it nor ``faint`` is told when hovering.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "line"
    marks: bool = False


def smooth(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Mean over ``window`` points around each, fewer at the ends, so that the line does not lag."""
    half = min(window // 2, max(len(points) - 1, 0))
    sums = list(accumulate((y for _, y in points), initial=0.0))
    reaches = [min(half, i, len(points) - 1 - i) for i in range(len(points))]
    means = [(sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1) for i, reach in enumerate(reaches)]
    return [(x, mean) for (x, _), mean in zip(points, means)]


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most ``limit`` points: means of equal runs; the last point stays as it is."""
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if len(points) <= limit:
        return points
    size = math.ceil(len(points) / (limit - 1))
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]
    return [*means, points[-1]] if means[-1][0] != points[-1][0] else [*means[:-1], points[-1]]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values between ``low`` and ``high``, about ``count`` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 2.5, 5, 10) if base * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A short text for a number: 3 significant digits, k and M above thousands, exponent when tiny."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 100:
        return f"{value:.0f}"
    if size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}"


def _value_range(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    low, high = min([*values, 0.0] if from_zero else values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if from_zero and low == 0 else low - margin), high + margin


def chart(series: Sequence[Series], *, from_zero: bool = False, width: int = WIDTH) -> Markup:
    """An SVG with axes, grid and one path per series; hovering is left to the page's script.

    Args:
        series: at least one; empty ones are left out.
        from_zero: start the value axis at zero.
        width: of the drawing, which is 240 high.

    Returns:
        SVG text, or a note when there is no data.
    """
    series = [s for s in (Series(s.name, thin(s.points), s.style, s.marks) for s in series) if s.points]
    if not series:
        return Markup('<p class="none">no data</p>')
    steps = [x for s in series for x, _ in s.points]
    low, high = _value_range([y for s in series for _, y in s.points], from_zero)
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (width - LEFT - RIGHT)
        return round(across, 1), round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    lines, hover = [], []
    for s in series:
        places = [at(x, y) for x, y in s.points]
        path = "M" + "L".join(f"{x} {y}" for x, y in places)
        lines.append({"style": s.style, "path": path, "dots": places[-60:] if s.marks or len(places) == 1 else []})
        points = [[*place, x, y] for place, (x, y) in zip(places, s.points)]
        hover += [{"name": s.name, "style": s.style, "points": points}] if s.style not in ("faint", "spike") else []
    svg = render(
        "chart.svg",
        width=width,
        height=HEIGHT,
        left=LEFT,
        right=width - RIGHT,
        top=TOP,
        base=HEIGHT - BOTTOM,
        label=", ".join(s.name for s in series),
        hover=json.dumps(hover, separators=(",", ":")),
        values=[(at(first, value)[1], number(value)) for value in ticks(low, high, 5)],
        steps=[(at(step, low)[0], number(step)) for step in ticks(first, last, 5) if step == int(step)],
        lines=lines,
    )
    return Markup(svg)
