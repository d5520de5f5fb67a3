"""The card of an evaluation: which model was asked what, how, and with what result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm.pages.bars import STYLES, Bar, top_of
from vlm.pages.charts import number
from vlm.pages.parts import render
from vlm.tasks.benchmarks.base import Score
from vlm.tasks.benchmarks.image_controls import CONTROLS

SHORT = 12
"""Digits of a hash that are shown."""
MOST_IDS = 2000
"""Token ids of a prompt that are shown."""


def page(name: str, groups: Mapping[str, Any], datasets: Sequence[Mapping[str, Any]]) -> str:
    """The card as HTML.

    Args:
        name: of the evaluation.
        groups: facts about model, settings, scoring, versions and machine, by heading; beside these the ``date``, the
            ``weights`` (format, file, bytes, sha256) and the ``commands`` (what each does -> the command).
        datasets: of each its ``name``; ``asked``, ``protocol`` and ``cost`` (facts); ``warnings``; ``errors`` (count,
            first), ``unread``; why it is ``unscored``, if so; the
            ``prompt`` as read; ``head``, ``rows`` and ``note`` of its table of scores;
            ``controls`` (image control -> scores) and ``groups`` (scores) for the bars; ``examples`` (heading ->
            :class:`AnswerCard`).

    Raises:
        DataError: an image cannot be read.
    """
    title = "Evaluation" if name == "evaluation" else f"Evaluation {name}"
    apart = ("date", "weights", "commands")
    return render(
        "card.html",
        title=title,
        date=groups["date"].replace("T", " ").replace("+00:00", " UTC"),
        weights=[_weight(w) for w in groups["weights"]],
        commands=groups["commands"],
        groups={k: v for k, v in groups.items() if k not in apart},
        datasets=[_section(d) for d in datasets],
    )


def _weight(facts: Mapping[str, Any]) -> dict[str, str]:
    size = facts.get("bytes")
    return {
        "format": str(facts["format"]),
        "file": str(facts["file"]),
        "size": "" if size is None else f"{number(size)}B",
        "sha256": facts["sha256"][:SHORT] if facts["sha256"] else "not readable",
        "whole": facts["sha256"],
    }


def _section(dataset: Mapping[str, Any]) -> dict[str, Any]:
    controls: Mapping[str, Sequence[Score]] = dataset["controls"]
    named = [(control, STYLES[k]) for k, control in enumerate(CONTROLS) if control in controls]
    prompt = dataset["prompt"]
    ids = [str(k) for k in prompt.get("ids", [])]
    return {
        **dataset,
        "tiles": _tiles(dataset),
        "legend": [(style, CONTROLS[control]) for control, style in named] if len(named) > 1 else [],
        "bars": control_bars({control: (style, controls[control]) for control, style in named}),
        "group_bars": score_bars(dataset["groups"]),
        "cost_shown": {k: number(v) for k, v in dataset["cost"].items()},
        "ids": " ".join(ids[:MOST_IDS]) + (f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""),
    }


def _tiles(dataset: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers that are shown large: the first score with its interval, then counts and speed."""
    controls: Mapping[str, Sequence[Score]] = dataset["controls"]
    scores = controls.get("right") or next(iter(controls.values()), [])
    result = []
    if scores and scores[0].value is not None:
        low_high = (
            "" if scores[0].interval is None else ", 95 %: {} to {}".format(*map(scores[0].text, scores[0].interval))
        )
        result.append((f"{scores[0].label}{low_high}", scores[0].text(scores[0].value)))
    rate = dataset["cost"].get("questions per second")
    result.append(("questions", str(dataset["asked"]["questions"])))
    result += [("questions per second", number(rate))] if rate else []
    result.append(("errors, not scored", str(dataset["errors"]["count"])))
    return [*result, ("answers not read by the rule", str(dataset["unread"]))] if dataset["unread"] else result


def control_bars(controls: Mapping[str, tuple[str, Sequence[Score]]]) -> list[Bar]:
    """The bars of each score, one per image control: control -> (CSS class, scores)."""
    tables = [(control, style, {s.label: s for s in scores}) for control, (style, scores) in controls.items()]
    result: list[Bar] = []
    for label in tables[0][2] if tables else ():
        found = [(control, style, table[label]) for control, style, table in tables if label in table]
        if found[0][2].value is None or (found[0][2].interval is None and found[0][2].unit == "number"):
            continue  # a count such as that of errors
        top = top_of((v for _, _, s in found for v in (s.value, *(s.interval or ()))), found[0][2].unit == "share")
        for place, (control, style, score) in enumerate(found):
            result.append(_bar(score, label if place == 0 else "", style, top, CONTROLS[control]))
    return result


def score_bars(scores: Sequence[Score]) -> list[Bar]:
    """One bar per score, all on the same scale."""
    shares = all(s.unit == "share" for s in scores)
    top = top_of((v for s in scores for v in (s.value, *(s.interval or ()))), shares)
    return [_bar(s, s.label, "one", top, "" if s.count is None else f"n = {s.count}") for s in scores]


def _bar(score: Score, label: str, style: str, top: float, note: str) -> Bar:
    bounds = "" if score.interval is None else "{} to {}".format(*map(score.text, score.interval))
    return Bar(label, score.value, score.text(score.value), score.interval, bounds, top, style, note)
