"""A summary for the terminal, in Markdown, in LaTeX, and as plain data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from vlm.common.errors import printable
from vlm.runners.study.report.effects import AxisEffect
from vlm.runners.study.report.reading import reading
from vlm.runners.study.report.summary import COSTS, Measure, Row, Summary
from vlm.runners.study.report.words import (
    BETTER,
    CONTROLS,
    HIGHER,
    LOWER,
    WORSE,
    bounds_text,
    cost_text,
    half_text,
    p_of,
    sentence,
    states_text,
    verdict,
)
from vlm.runners.study.statistics import Change, Estimate

MARKDOWN = "<!-- written by vlm study report -->\n"
LATEX = "% written by vlm study report\n"
"""How the files begin, by which they are recognised when they are written again."""
MOST_FAULTS = 20
SHORT = {"trained": "trained", "flops": "FLOPs", "minutes": "min"}

Table = tuple[list[str], list[list[str]]]


def table(summary: Summary) -> Table:
    """Heads and rows of the table, as plain texts."""
    measure = summary.measure
    axes = [axis.name for axis in summary.study.axes] or sorted({a for row in summary.rows for a in row.levels})
    costs = [name for name in COSTS if any(row.costs(name) for row in summary.rows)]
    heads = [*axes, f"{measure.name}{', %' if measure.unit == 'share' else ''}"]
    heads += [CONTROLS[control] for control in summary.controls]
    heads += ["difference", "95 %", "p", "p (Holm)", "verdict"] if summary.comparisons else []
    heads += [SHORT[name] for name in costs] + ["cells"]
    return heads, [_cells(summary, row, axes, costs) for row in summary.rows]


def _cells(summary: Summary, row: Row, axes: Sequence[str], costs: Sequence[str]) -> list[str]:
    measure, change = summary.measure, row.change
    cells = [row.levels.get(axis, "-") for axis in axes]
    cells.append(_mean(measure, row.score))
    cells += [_mean(measure, row.controls.get(control)) for control in summary.controls]
    if summary.comparisons and change is not None:
        cells += [measure.text(change.found.value, signed=True), bounds_text(measure, change.found, signed=True)]
        cells += [p_of(change.p), p_of(change.adjusted), verdict(measure, change)]
    elif summary.comparisons:
        is_reference = summary.reference is not None and row.key == summary.reference.key
        cells += ["", "", "", "", "reference" if is_reference else ""]
    return cells + [cost_text(row, name) for name in costs] + [states_text(row.states)]


def _mean(measure: Measure, found: Estimate | None) -> str:
    return "-" if found is None else f"{measure.text(found.value)} {half_text(measure, found)}".strip()


def terminal(summary: Summary, by: str = "") -> str:
    """The table, or the main effect of one axis, with what failed."""
    lines = [f"{summary.title}: {len(summary.results)} cells, {states_text(summary.counts)}"]
    if by:
        lines += [line for effect in summary.effects if effect.axis == by for line in _effect(summary.measure, effect)]
    else:
        lines += _aligned(*table(summary))
        lines += [sentence(summary)] if sentence(summary) else []
    faults = [(row.name, seed, text) for row in summary.rows for seed, text in row.messages]
    lines += [
        f"failed: {name}, seed {seed}: {text.splitlines()[0] if text else ''}"
        for name, seed, text in faults[:MOST_FAULTS]
    ]
    lines += [f"and {len(faults) - MOST_FAULTS} more failed"] if len(faults) > MOST_FAULTS else []
    return "\n".join(map(printable, lines))


def _effect(measure: Measure, effect: AxisEffect) -> list[str]:
    settings = "1 setting" if effect.settings == 1 else f"{effect.settings} settings"
    note = f"over {settings} of the other axes{'' if effect.balanced else ', adjusted'}"
    return [*_aligned(*_effect_table(measure, effect)), note]


def _effect_table(measure: Measure, effect: AxisEffect) -> Table:
    heads = [effect.axis, f"mean{', %' if measure.unit == 'share' else ''}", "effect", "95 %", "combinations"]
    rows = []
    for level in effect.levels:
        bounds = " to ".join(measure.text(bound, signed=True) for bound in level.bounds or ())
        rows.append(
            [level.label, measure.text(level.mean), measure.text(level.effect, signed=True), bounds, str(level.count)]
        )
    return heads, rows


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    grid = [[_line(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[k]) for row in grid) for k in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in grid]


def _line(text: str) -> str:
    return " ".join(text.split())


def markdown(summary: Summary) -> str:
    """The study in Markdown."""
    lines = [MARKDOWN, f"# {_md(summary.title)}", ""]
    lines += [_md(summary.study.file.about), ""] if summary.study.file.about else []
    lines += [
        f"{len(summary.results)} cells: {_md(states_text(summary.counts))}. {_md(sentence(summary))}".rstrip(),
        "",
    ]
    lines += [*_md_table(*table(summary)), ""]
    for effect in summary.effects if len(summary.study.axes) > 1 else ():
        lines += [*_md_table(*_effect_table(summary.measure, effect)), ""]
    faults = [f"- {_md(row.name)}, seed {seed}: {_md(text)}" for row in summary.rows for seed, text in row.messages]
    lines += ["Failed:", "", *faults, ""] if faults else []
    lines += [f"- **{_md(name)}**: {_md(text)}" for name, text in reading(summary)]
    return "\n".join(lines) + "\n"


def _md_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell if line is lines[1] else _md(cell) for cell in line) + " |" for line in lines]


def _md(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", _line(printable(text)))


SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "^": r"\textasciicircum{}",
    "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%", "<": "$<$", ">": "$>$", "|": r"\textbar{}", "±": r"$\pm$",
    "–": "--", "×": r"$\times$", "…": r"\dots{}", "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
"""Characters that mean something to LaTeX; ``[`` and ``*`` do at the beginning of a row."""


def latex(summary: Summary) -> str:
    """The table as a LaTeX ``tabular`` that needs no package; the best score is bold, a star is a shown difference."""
    heads, rows = table(summary)
    place = len(summary.study.axes) or len({a for row in summary.rows for a in row.levels})
    drop = [k for k, head in enumerate(heads) if head in ("verdict", "cells") and k > place]
    lines = []
    for k, (row, cells) in enumerate(zip(summary.rows, rows, strict=True)):
        texts = [_tex(cell) for cell in cells]
        if k == 0 and row.score is not None:
            texts[place] = rf"\textbf{{{texts[place]}}}"
        if verdict(summary.measure, row.change) in (BETTER, WORSE, HIGHER, LOWER):
            texts[heads.index("difference", place)] += "$^{*}$"
        lines.append(" & ".join(text for n, text in enumerate(texts) if n not in drop) + r" \\")
    kept = [head for n, head in enumerate(heads) if n not in drop]
    columns = "l" * place + "r" * (len(kept) - place)
    caption = f"% {_line(printable(summary.title))}; *: p (Holm) of at most 0.05 for {summary.comparisons} comparisons"
    head = " & ".join(map(_tex, kept)) + r" \\"
    return "\n".join(
        [
            LATEX + caption,
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            head,
            r"\hline",
            *lines,
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    )


def _tex(text: str) -> str:
    text = "".join(SPECIAL.get(c, c) for c in _line(printable(text)))
    return re.sub(r"^-(?=\d)", "$-$", text).replace(" -", " $-$")


def as_json(summary: Summary) -> str:
    """All numbers, of which those that are not known are null."""
    measure = summary.measure
    found = {
        "title": summary.title,
        "study": str(summary.study.source),
        "score": {"name": measure.name, "unit": measure.unit, "better": measure.better},
        "reference": None if summary.reference is None else dict(summary.reference.key),
        "cells": dict(summary.counts),
        "comparisons": summary.comparisons,
        "combinations": [_row_json(summary, row) for row in summary.rows],
        "effects": [_effect_json(effect) for effect in summary.effects],
    }
    return json.dumps(found, indent=1) + "\n"


def _row_json(summary: Summary, row: Row) -> dict[str, Any]:
    cost = row.cost
    return {
        "levels": dict(row.levels),
        "cells": dict(row.states),
        "failed": [{"seed": seed, "message": text} for seed, text in row.messages],
        "score": _estimate_json(row.score),
        "by_seed": {str(seed): value for seed, value in row.values.items()},
        "controls": {name: _estimate_json(found) for name, found in row.controls.items()},
        "others": {name: _estimate_json(found) for name, found in row.others.items()},
        "difference": None if row.change is None else _change_json(row.change, verdict(summary.measure, row.change)),
        "cost": None if cost is None else {**vars(cost)},
        "pareto": sorted(row.fronts),
    }


def _estimate_json(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    bounds = None if found.bounds is None else list(found.bounds)
    return {
        "mean": found.value,
        "interval": bounds,
        "seeds": found.seeds,
        "questions": found.questions,
        "deviation": found.spread,
    }


def _change_json(change: Change, word: str) -> dict[str, Any]:
    test = {"p": change.p, "exact": change.exact, "p_interval": change.seeds_p, "p_holm": change.adjusted}
    return {**(_estimate_json(change.found) or {}), **test, "verdict": word}


def _effect_json(effect: AxisEffect) -> dict[str, Any]:
    levels = [
        {
            "label": v.label,
            "mean": v.mean,
            "effect": v.effect,
            "interval": v.bounds and list(v.bounds),
            "combinations": v.count,
        }
        for v in effect.levels
    ]
    facts = {"settings": effect.settings, "balanced": effect.balanced, "left_out": list(effect.left_out)}
    return {"axis": effect.axis, **facts, "levels": levels}


def written_by_us(head: str) -> bool:
    """Whether a file that begins so is one of ``FORMATS``."""
    return head.startswith((MARKDOWN, LATEX))


FORMATS: dict[str, Callable[[Summary], str]] = {"report.md": markdown, "report.tex": latex}
"""Files beside the page."""
