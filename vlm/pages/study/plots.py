"""Curves of many runs, and cost against score, as inline SVG; the page's script tells what the pointer is at."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from vlm.pages.charts import number, ticks
from vlm.pages.parts import render

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 14, 34
COLOURS = 8
"""Lines with a colour of their own; further ones are grey."""
STEEP = 12.0
"""Costs that differ more are drawn on a logarithmic axis."""
START = 0.05
"""Share of a training whose losses may be above the drawing."""


@dataclass(frozen=True)
class Curve:
    """A combination over the steps: points are (step, mean, lowest, highest) over its seeds."""

    name: str
    points: Sequence[tuple[float, float, float, float]]
    colour: int = COLOURS

    @property
    def style(self) -> str:
        """CSS class: ``c0`` to ``c7``, or ``cx``."""
        return style_of(self.colour)


@dataclass(frozen=True)
class Point:
    """A combination: cost, score, interval of the score, and how they are written."""

    name: str
    cost: float
    score: float
    bounds: Sequence[float] | None
    about: str
    colour: int = COLOURS
    front: bool = False
    reference: bool = False

    @property
    def style(self) -> str:
        """CSS class of its colour."""
        return style_of(self.colour)


def style_of(colour: int) -> str:
    """The CSS class of a colour by its place; ``cx``: one of the many."""
    return f"c{colour}" if colour < COLOURS else "cx"


@dataclass(frozen=True)
class _Frame:
    """Numbers to pixels."""

    first: float
    last: float
    low: float
    high: float
    steep: bool = False

    def x(self, value: float) -> float:
        first, last, value = (math.log(v) if self.steep else v for v in (self.first, self.last, value))
        return round(LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM), 1)

    def drawn(self, across: Sequence[float], values: str, below: str, share: bool = False) -> dict[str, Any]:
        """What the template needs of the frame."""
        text = (lambda v: f"{100 * v:g}%") if share else number
        return {
            "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP,
            "base": HEIGHT - BOTTOM, "values": [(self.y(v), text(round(v, 10))) for v in ticks(self.low, self.high, 5)],
            "steps": [(self.x(v), number(v)) for v in across], "label": values, "below": below,
        }  # fmt: skip


def curves(lines: Sequence[Curve], name: str) -> Markup:
    """Lines with the range of their seeds; the first of them are drawn on top.

    Args:
        lines: with points; others are left out.
        name: what the values are, for screen readers.

    Returns:
        SVG text, or a note where there is no data.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup('<p class="none">no data</p>')
    steps = [p[0] for line in lines for p in line.points]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    every = [p for line in lines for p in line.points]
    later = [p for p in every if p[0] >= first + START * (last - first)] or every
    low, high = min(p[2] for p in later), max(p[1] for p in later)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    frame = _Frame(first, last, low - margin, high + margin)
    drawn = []
    for line in reversed(lines):
        there = [
            (frame.x(x), frame.y(mean), frame.y(lowest), frame.y(highest)) for x, mean, lowest, highest in line.points
        ]
        path = "M" + "L".join(f"{x} {y}" for x, y, _, _ in there)
        wide = any(below != above for _, _, below, above in there) and line.colour < COLOURS
        around = [(x, above) for x, _, _, above in there] + [(x, below) for x, _, below, _ in reversed(there)]
        band = "M" + "L".join(f"{x} {y}" for x, y in around) + "Z" if wide else ""
        dots = [(x, y) for x, y, _, _ in there] if len(there) < 25 else []
        drawn.append({"name": line.name, "style": line.style, "path": path, "band": band, "dots": dots})
    across = [v for v in ticks(first, last, 5) if v == int(v)]
    axes = {"x0": first, "x1": last, "y0": frame.low, "y1": frame.high}
    values = frame.drawn(across, f"{name} by step", "step")
    return Markup(render("study_curves.svg", lines=drawn, axes=json.dumps(axes), **values))


def scatter(points: Sequence[Point], cost: str, score: str, share: bool = False, higher: bool = True) -> Markup:
    """Cost against score with intervals, and a line through the Pareto front.

    Args:
        points: at least one.
        cost, score: what the axes are.
        share: whether scores are of 1, written in percent.
        higher: whether higher scores are better.
    """
    costs = [point.cost for point in points]
    steep = min(costs) > 0 and max(costs) / min(costs) > STEEP
    reach = (max(costs) / min(costs)) ** 0.08 if steep else (max(costs) - min(costs)) * 0.08 or max(costs) * 0.1 or 1.0
    first, last = (min(costs) / reach, max(costs) * reach) if steep else (min(costs) - reach, max(costs) + reach)
    ends = [v for point in points for v in (point.score, *(point.bounds or ()))]
    margin = (max(ends) - min(ends)) * 0.08 or abs(max(ends)) * 0.1 or 1.0
    frame = _Frame(first, last, min(ends) - margin, max(ends) + margin, steep)
    places = [(point, frame.x(point.cost), frame.y(point.score)) for point in points]
    front = sorted(((x, y) for point, x, y in places if point.front), key=lambda at: at[0])
    drawn = [
        {"point": point, "x": x, "y": y, "ends": [frame.y(b) for b in point.bounds] if point.bounds else None}
        for point, x, y in places
    ]
    values = frame.drawn(_across(frame), f"{score} by {cost}", cost, share)
    line = "M" + "L".join(f"{x} {y}" for x, y in _stairs(front)) if len(front) > 1 else ""
    return Markup(
        render("study_scatter.svg", points=drawn, front=line, labels=_labels(places), higher=higher, **values)
    )


def _stairs(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The front as stairs: up to the next cost nothing is better than the point before."""
    corners = [(after[0], before[1]) for before, after in zip(front, front[1:])]
    return [at for k, place in enumerate(front) for at in ([corners[k - 1]] if k else []) + [place]]


def _across(frame: _Frame) -> list[float]:
    if not frame.steep:
        return ticks(frame.first, frame.last, 5)
    low, high = math.floor(math.log10(frame.first)), math.ceil(math.log10(frame.last))
    steps = (1, 2, 5) if high - low < 3 else (1,)
    return [m * 10.0**e for e in range(low, high + 1) for m in steps if frame.first <= m * 10.0**e <= frame.last]


def _labels(places: Sequence[tuple[Point, float, float]]) -> list[dict[str, Any]]:
    """Names beside the points of the front and the reference, as far as there is room for them."""
    taken: list[tuple[float, float, float, float]] = [(x - 7, y - 7, x + 7, y + 7) for _, x, y in places]
    result: list[dict[str, Any]] = []
    for point, x, y in sorted(places, key=lambda at: (not at[0].front, not at[0].reference)):
        if not (point.front or point.reference or len(places) <= COLOURS) or len(result) >= COLOURS:
            continue
        text = point.name if len(point.name) <= 28 else point.name[:27] + "…"
        wide = 6.4 * len(text)
        for end, left, base in (
            ("start", x + 10, y + 4),
            ("end", x - 10 - wide, y + 4),
            ("start", x - wide / 2, y - 12),
            ("start", x - wide / 2, y + 22),
        ):
            box = left, base - 10, left + wide, base + 3
            if left < LEFT or left + wide > WIDTH or any(_touch(box, other) for other in taken):
                continue
            taken.append(box)
            result.append({"x": round(left + (wide if end == "end" else 0), 1), "y": base, "end": end, "text": text})
            break
    return result


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
