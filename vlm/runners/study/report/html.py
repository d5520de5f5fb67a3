"""``report_page``: a summary as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlm.pages.study.page import Answered, Card, Effect, EffectLine, Level, Number, Shown, Table, TableRow, page
from vlm.pages.study.plots import COLOURS
from vlm.pages.study.strip import Scale, strip
from vlm.runners.evaluate.results.compare import p_text
from vlm.runners.study.report.changes import differences
from vlm.runners.study.report.drawings import cost_plots, curve_plots
from vlm.runners.study.report.effects import AxisEffect, Key
from vlm.runners.study.report.examples import Example, examples
from vlm.runners.study.report.reading import reading
from vlm.runners.study.report.summary import COSTS, Measure, Row, Summary
from vlm.runners.study.report.words import (
    BETTER,
    CONTROLS,
    WORSE,
    amount,
    bounds_text,
    cost_text,
    half_text,
    over_text,
    p_of,
    sentence,
    states_text,
    verdict,
)
from vlm.runners.study.results import State

COST_HEADS = {"trained": ("trained", "parameters"), "flops": ("FLOPs", ""), "minutes": ("minutes", "of training")}
DRAWN = {"wrong": "orange", "none": "grey", "blank": "green"}
"""Image control -> colour of its line."""
MOST_OTHERS = 8
"""Further measures that are columns of the table."""
WAITING: tuple[State, ...] = ("missing", "running", "interrupted", "pruned", "trained")


def report_page(summary: Summary, roots: Mapping[str, str]) -> str:
    """The page.

    Args:
        summary: of the study.
        roots: dataset -> the only folder that its images are read from.
    """
    asked = examples(summary, roots)
    cells = {result.cell.key: result.cell for result in reversed(summary.results)}
    anchors = {row.key: f"combination-{k}" for k, row in enumerate(summary.rows)}
    changed = differences(summary.study, cells)
    colours = colours_of(summary)
    shown = Shown(
        title=summary.title,
        about=[text for text in summary.study.file.about.split("\n\n") if text.strip()],
        sub=_sub(summary),
        sentence=sentence(summary),
        tiles=_tiles(summary),
        warnings=_warnings(summary),
        faults=[(f"{row.name}, seed {seed}", text) for row in summary.rows for seed, text in row.messages],
        waiting=_waiting(summary),
        table=_table(summary),
        effects=_effects(summary.measure, summary.effects) if len(summary.study.axes) > 1 else (),
        curves=curve_plots(summary, colours),
        costs=cost_plots(summary, colours),
        same=_same(summary),
        cards=[_card(example, summary) for example in asked.examples],
        asked=asked.dataset,
        notes=asked.notes,
        reference=summary.study.named(summary.study.reference),
        differences=[(anchors[row.key], row.name, changed[row.key]) for row in summary.rows if row.key in changed],
        reading=reading(summary),
    )
    return page(shown)


def colours_of(summary: Summary) -> dict[Key, int]:
    """The colour of each combination: the reference first, then the best; further ones share grey."""
    first = [summary.reference.key] if summary.reference is not None else []
    order = first + [row.key for row in summary.rows if row.key not in first]
    return {key: min(k, COLOURS) for k, key in enumerate(order)}


def _sub(summary: Summary) -> str:
    seeds = {result.cell.seed for result in summary.results}
    cells = len(summary.results)
    told = f"{len(summary.rows)} combinations × {len(seeds)} seed{'s' if len(seeds) != 1 else ''}, {cells} cells"
    return (
        f"{told}: {', '.join(f'{count} {state}' for state, count in summary.counts.items())} · {summary.study.source}"
    )


def _tiles(summary: Summary) -> list[tuple[str, str]]:
    best = next((row for row in summary.rows if row.score is not None), None)
    result = []
    if best is not None and best.score is not None:
        text = (
            f"{summary.measure.text(best.score.value)}{summary.measure.sign} {half_text(summary.measure, best.score)}"
        )
        result.append((f"best {summary.measure.name}: {best.name}", text.strip()))
    done = summary.counts.get("done", 0) + summary.counts.get("trained", 0)
    result.append(("cells trained", f"{done} of {len(summary.results)}"))
    questions = max((row.score.questions for row in summary.rows if row.score is not None), default=0)
    result += [(f"questions of {summary.measure.dataset}", f"{questions:,}")] if questions else []
    seconds = sum(result_.cost.seconds for result_ in summary.results)
    result += [("of training, all cells", f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min")]
    return result


def _warnings(summary: Summary) -> list[str]:
    found = []
    if len({result.cell.seed for result in summary.results}) == 1 and summary.rows:
        found.append("One seed: intervals are over questions alone, and say nothing about another seed.")
    if summary.study.file.search is not None:
        found.append(
            "A search: what did well was tried more often, and bad cells may have been ended early. Its best score is "
            "too high by chance, and effects are of what was tried; train the best again with new seeds."
        )
    if summary.reference is None or summary.reference.score is None:
        name = summary.study.named(summary.study.reference)
        found.append(f"The reference ({name}) has no score yet, so that nothing is compared.")
    blind = [row.name for row in summary.rows if row.blind]
    if blind:
        told = ", ".join(blind[:8]) + (f" and {len(blind) - 8} more" if len(blind) > 8 else "")
        found.append(f"No better with the right image than without it, as far as the intervals show: {told}.")
    return found


def _waiting(summary: Summary) -> list[tuple[str, str]]:
    result: list[tuple[str, str]] = []
    for state in WAITING:
        if state == "trained" and summary.study.file.evaluate is None:
            continue
        rows = [(row.name, row.states[state]) for row in summary.rows if state in row.states]
        told = "; ".join(f"{name} ({count})" if count > 1 else name for name, count in rows[:40])
        what = "trained, not evaluated" if state == "trained" else state
        result += [(what, told + (f"; and {len(rows) - 40} more" if len(rows) > 40 else ""))] if rows else []
    return result


def _table(summary: Summary) -> Table:
    measure, rows = summary.measure, summary.rows
    others = [other for other in summary.others if any(other.name in row.others for row in rows)][:MOST_OTHERS]
    costs = [name for name in COSTS if any(row.costs(name) for row in rows)]
    ends = [v for row in rows if row.score for v in (row.score.value, *(row.score.bounds or ()))]
    ends += [found.value for row in rows for found in row.controls.values()]
    scale = Scale.over(ends)
    changes = [row.change.found for row in rows if row.change is not None]
    about = Scale.over([v for c in changes for v in (c.value, *(c.bounds or ()))], centre=0.0)
    axes = [axis.name for axis in summary.study.axes] or sorted({axis for row in rows for axis in row.levels})
    return Table(
        axes,
        f"{measure.name}{', %' if measure.unit == 'share' else ''}",
        [CONTROLS[control] for control in summary.controls],
        summary.comparisons > 0,
        [(other.name, "%" if other.unit == "share" else "") for other in others],
        [COST_HEADS[name] for name in costs],
        [_table_row(summary, row, axes, others, costs, scale, about) for row in rows],
        _caption(summary),
    )


def _caption(summary: Summary) -> str:
    drawn = [f"{CONTROLS[control]} ({colour})" for control, colour in DRAWN.items() if control in summary.controls]
    told = "Bold: not as in the reference. A dot is the mean over seeds, the line its 95 % interval over "
    told += over_text(summary)
    return f"{told}{'; short lines: ' + ', '.join(drawn) if drawn else ''}. A heading sorts."


def _table_row(
    summary: Summary,
    row: Row,
    axes: Sequence[str],
    others: Sequence[Measure],
    costs: Sequence[str],
    scale: Scale,
    about: Scale,
) -> TableRow:
    measure = summary.measure
    levels = [Level(row.levels.get(axis, "–"), axis in row.changed) for axis in axes]
    controls = []
    for control in summary.controls:
        found = row.controls.get(control)
        blind = control in row.unseen
        controls.append(
            Number("-")
            if found is None
            else Number(
                measure.text(found.value),
                found.value,
                half_text(measure, found),
                style="warn" if blind else "",
                title="not better with the right image" if blind else "",
            )
        )
    known = [row.others.get(other.name) for other in others]
    also = [
        Number("-") if found is None else Number(other.text(found.value), found.value, half_text(other, found))
        for other, found in zip(others, known)
    ]
    spent = [
        Number(
            cost_text(row, name),
            row.costs(name) or None,
            style="front" if name in row.fronts else "",
            title="on the Pareto front" if name in row.fronts else "",
        )
        for name in costs
    ]
    word = verdict(measure, row.change)
    change, p = Number("-" if summary.reference and row.key != summary.reference.key else ""), Number("")
    if row.change is not None:
        found, test = row.change.found, row.change
        style = {BETTER: "better", WORSE: "worse"}.get(word, "unsure")
        change = Number(
            measure.text(found.value, signed=True),
            found.value,
            bounds=bounds_text(measure, found, signed=True),
            drawn=strip(about, found.value, found.bounds, style=style),
        )
        exact = "all permutations counted" if test.exact else "a sample of the permutations"
        title = f"{exact}; at least {p_of(test.least)} with so few values" if test.least > 0.001 else exact
        p = Number(p_of(test.adjusted), test.adjusted, bounds=f"p {p_text(test.p)}", title=title)
    return TableRow(
        row.name, levels, _score(measure, row, scale), controls, change, p, word, also, spent,
        _seeds(row),
        summary.reference is not None and row.key == summary.reference.key,
        {BETTER: "better", WORSE: "worse"}.get(word, ""),
    )  # fmt: skip


def _seeds(row: Row) -> Number:
    """How many cells count, and the state of the others."""
    count = row.score.seeds if row.score is not None else 0
    rest = {state: n for state, n in row.states.items() if state not in ("done", "trained")}
    return Number(str(count), count, bounds=states_text(rest) if rest else "")


def _score(measure: Measure, row: Row, scale: Scale) -> Number:
    found = row.score
    if found is None:
        return Number("-")
    by_seed = "; ".join(f"seed {seed}: {measure.text(value)}" for seed, value in row.values.items())
    drawn = strip(scale, found.value, found.bounds, [(control, c.value) for control, c in row.controls.items()])
    return Number(
        measure.text(found.value),
        found.value,
        half_text(measure, found),
        bounds_text(measure, found),
        drawn,
        title=by_seed,
    )


def _effects(measure: Measure, effects: Sequence[AxisEffect]) -> list[Effect]:
    scale = Scale.over(
        [v for e in effects for level in e.levels for v in (level.effect, *(level.bounds or ()))], centre=0.0
    )
    result = []
    for effect in effects:
        lines = [
            EffectLine(
                level.label,
                measure.text(level.mean),
                measure.text(level.effect, signed=True),
                " to ".join(measure.text(bound, signed=True) for bound in level.bounds or ()),
                level.count,
                strip(scale, level.effect, level.bounds),
            )
            for level in effect.levels
        ]
        one = effect.settings == 1
        note = f"Over {effect.settings} setting{'' if one else 's'} of the other axes"
        note += "." if effect.balanced else ", some of which lack a value: means are adjusted for that."
        note += (
            f" Without {', '.join(effect.left_out)}, which shares no setting with the others."
            if effect.left_out
            else ""
        )
        result.append(Effect(effect.axis, f"{note} Beside a value: its combinations.", lines))
    return result


def _same(summary: Summary) -> str:
    varying = summary.varying()
    known = {name: max(row.costs(name) for row in summary.rows) for name in COSTS if summary.rows}
    told = [f"{amount(value)} {COSTS[name]}" for name, value in known.items() if value and name not in varying]
    return f"The same for all combinations, within 2 %: {', '.join(told)}." if told else ""


def _card(example: Example, summary: Summary) -> Card:
    rows = [row for row in summary.rows if row.key in example.answers]
    answers, right, known = [], 0, 0
    for row in rows:
        given = example.answers[row.key]
        total = sum(one.count for one in given)
        right += sum(one.count for one in given if one.right)
        known += sum(one.count for one in given if one.right is not None)
        told = [
            (
                one.text,
                f"{one.count} of {total}" if total > 1 and one.count < total else "",
                {True: "right", False: "wrong", None: ""}[one.right],
            )
            for one in given
        ]
        answers.append(Answered(row.name, told))
    return Card(
        example.question,
        example.reference,
        example.images,
        answers,
        f"right in {right} of {known} cells" if known else "",
    )
