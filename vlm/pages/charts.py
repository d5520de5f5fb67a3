"""Line charts as inline SVG. Colours come from the page's CSS variables, so they follow light and dark."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, WIDE, HEIGHT = 560, 1140, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 12, 30
MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One line: ``points`` are (step, value); ``style`` is a CSS class (``line``, ``faint``, ``second``)."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "line"
    marks: bool = False


def smooth(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Mean over ``window`` points around each, fewer at the ends, so that the line does not lag."""
    half = min(window // 2, max(len(points) - 1, 0))
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    out = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        out.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return out


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
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.0)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if from_zero and low == 0 else low - margin), high + margin


def chart(series: Sequence[Series], *, from_zero: bool = False, width: int = WIDTH) -> str:
    """An SVG with axes, grid and one path per series; hovering is left to the page's script.

    Args:
        series: at least one; empty ones are left out.
        from_zero: start the value axis at zero.
        width: of the drawing, which is 240 high.

    Returns:
        SVG text, or a note when there is no data.
    """
    series = [Series(s.name, thin(s.points), s.style, s.marks) for s in series]
    series = [s for s in series if s.points]
    if not series:
        return '<p class="none">no data</p>'
    xs = [x for s in series for x, _ in s.points]
    low, high = _value_range([y for s in series for _, y in s.points], from_zero)
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def across(x: float) -> float:
        return LEFT + (x - first) / (last - first) * (width - LEFT - RIGHT)

    def down(y: float) -> float:
        return TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    lines = "".join(_path(s, across, down) for s in series)
    hover = [
        {
            "name": s.name,
            "style": s.style,
            "points": [[round(across(x), 1), round(down(y), 1), x, y] for x, y in s.points],
        }
        for s in series
        if s.style != "faint"
    ]
    data = html.escape(json.dumps(hover, separators=(",", ":")))
    label = html.escape(", ".join(s.name for s in series))
    return (
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{label} by step" data-series="{data}">'
        f"{_axes((first, last), (low, high), width, across, down)}{lines}"
        f'<line class="cross" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/></svg>'
    )


def _axes(
    steps: tuple[float, float],
    values: tuple[float, float],
    width: int,
    across: Callable[[float], float],
    down: Callable[[float], float],
) -> str:
    parts = []
    for value in ticks(*values, 5):
        y = f"{down(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y}" dy="0.32em" text-anchor="end">{number(value)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text class="tick" x="{LEFT - 8}" y="{base + 21}" text-anchor="end">step</text>')
    for value in ticks(*steps, 5):
        if value == int(value):
            x = f"{across(value):.1f}"
            parts.append(f'<text class="tick" x="{x}" y="{base + 21}" text-anchor="middle">{number(value)}</text>')
    return "".join(parts)


def _path(series: Series, across: Callable[[float], float], down: Callable[[float], float]) -> str:
    points = [(across(x), down(y)) for x, y in series.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = ""
    if series.marks or len(points) == 1:
        dots = "".join(f'<circle class="{series.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points[-60:])
    return f'<path class="{series.style}" d="{path}"/>{dots}'
