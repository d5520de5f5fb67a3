"""A step of a run with its samples, and the worst steps of a run, as pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlm.pages.bars import Bar, top_of
from vlm.pages.charts import WIDE, Series, chart, smooth
from vlm.pages.parts import render

SHOWN = 200
"""Samples of a page, those with the largest loss; JSON has all."""
WORST = 10
"""Rows of the table of samples with the largest loss."""
DEAREST = 8
"""Tokens of a sample with the largest loss that are listed."""
SHADES = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Losses at which the colour of a token changes (nats)."""


def step_page(title: str, facts: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> str:
    """The page of a step as HTML; every text is escaped.

    Args:
        title: heading.
        facts: ``sub`` (where it is from), ``state`` (``finished``: equal to the log, ``stopped``: not, or empty) with
            its ``status`` in words, ``tiles`` (name, value), ``notes`` (why numbers may differ), ``parts`` (part ->
            norm of its gradient), ``numbers`` (rows: what, logged, replayed, difference).
        samples: by falling loss, each with ``place`` (process and micro-batch), ``name``, ``dataset``, ``record``,
            ``media`` (files), ``loss``, ``share`` (of the step's loss), ``targets``, ``images`` (CSS class and
            ``data:`` addresses) and ``tokens`` (text, trained, medium, loss or None).
    """
    top = top_of(facts["parts"].values(), share=False)
    bars = [Bar(name, norm, f"{norm:.4g}", top=top) for name, norm in facts["parts"].items()]
    cards = [_card(number, sample) for number, sample in enumerate(samples[:SHOWN], start=1)]
    return render(
        "replay.html",
        title=title,
        kind="wide",
        bars=bars,
        worst=cards[:WORST],
        cards=cards,
        left_out=len(samples) - len(cards),
        shades=[("k0", f"below {SHADES[0]:g}"), *((f"k{n}", f"from {s:g}") for n, s in enumerate(SHADES, start=1))],
        **facts,
    )


def _card(number: int, sample: Mapping[str, Any]) -> dict[str, Any]:
    tokens = sample["tokens"]
    trained = sorted((t for t in tokens if t.loss is not None), key=lambda t: -_ordered(t.loss))
    return {
        **sample,
        "anchor": f"s{number}",
        "loss_text": f"{sample['loss']:.4g}",
        "share_text": "" if sample["share"] is None else f"{sample['share']:.1%}",
        "runs": [(_style(t), shown(t.text), "" if t.loss is None else f"loss {t.loss:.3g}") for t in tokens],
        "dearest": [(shown(t.text), f"{t.loss:.3g}") for t in trained[:DEAREST]],
    }


def _style(token: Any) -> str:
    if token.medium:
        return "m"
    if not token.trained:
        return ""
    if token.loss is None:
        return "k"
    return f"k k{sum(_ordered(token.loss) >= shade for shade in SHADES)}"


def _ordered(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def shown(piece: str) -> str:
    """A piece of a vocabulary with its spaces and line breaks."""
    return piece.replace("▁", " ").replace("⏎", "⏎\n")


def spikes_page(
    title: str, sub: str, losses: Sequence[tuple[int, float]], norms: Sequence[tuple[int, float]], **shown: Any
) -> str:
    """The page of the worst steps as HTML; every text is escaped.

    Args:
        title: heading.
        sub: where it is from.
        losses: (step, loss) of every step.
        norms: (step, gradient norm) of every step.
        shown: ``steps`` (steps that are above the limit), and ``rows`` of the table with the cells of ``head``.
    """
    above = set(shown.pop("steps"))
    charts = []
    for name, points in (("Loss", losses), ("Gradient norm", norms)):
        window = max(1, len(points) // 40)
        dots = [point for point in points if point[0] in above]
        lines = [Series("each step", points, "faint"), Series(name.lower(), smooth(points, window))]
        charts.append((name, chart([*lines, Series("spikes", dots, "spike", marks=True)], width=WIDE)))
    return render("spikes.html", title=title, sub=sub, script="charts.js", charts=charts, **shown)
