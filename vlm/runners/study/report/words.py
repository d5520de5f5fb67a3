"""How numbers and verdicts of a study are written, everywhere the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vlm.runners.evaluate.results.compare import p_text

if TYPE_CHECKING:
    from vlm.runners.study.report.summary import Measure, Row, Summary
    from vlm.runners.study.results import State
    from vlm.runners.study.statistics import Change, Estimate

PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
CONTROLS = {"wrong": "wrong image", "none": "no image", "blank": "grey image"}
BETTER, WORSE, HIGHER, LOWER = "better", "worse", "higher", "lower"
VERDICTS = (BETTER, WORSE, HIGHER, LOWER)
UNSURE, ONE_SEED = "no difference shown", "one seed"


def amount(value: float) -> str:
    """A count with 3 digits and a prefix; ``-``: not known."""
    if not value:
        return "-"
    for prefix, size in PREFIXES:
        if value >= size * 0.9995:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def cost_text(row: Row, name: str) -> str:
    """One of the costs of a combination."""
    return amount(row.costs(name))


def p_of(value: float) -> str:
    """A p without the sign of equality."""
    return p_text(value).removeprefix("= ")


def half_text(measure: Measure, found: Estimate | None) -> str:
    """Half the width of an interval, with its sign; empty: there is none."""
    if found is None or found.half is None:
        return ""
    return f"± {100 * found.half:.1f}" if measure.unit == "share" else f"± {found.half:.2g}"


def bounds_text(measure: Measure, found: Estimate | None, signed: bool = False) -> str:
    """The ends of an interval; empty: there is none."""
    if found is None or found.bounds is None:
        return ""
    return " to ".join(measure.text(bound, signed) for bound in found.bounds)


def verdict(measure: Measure, change: Change | None) -> str:
    """What a difference shows; empty: there is none."""
    if change is None:
        return ""
    if change.seeds_p is None:
        return ONE_SEED
    if not change.shown():
        return UNSURE
    if not measure.better:
        return HIGHER if change.found.value > 0 else LOWER
    return BETTER if (change.found.value > 0) == (measure.better == "higher") else WORSE


def over_text(summary: Summary) -> str:
    """What intervals are over."""
    known = [row.score for row in summary.rows if row.score is not None]
    seeds, questions = any(found.seeds > 1 for found in known), any(found.questions for found in known)
    return "seeds and questions" if seeds and questions else "questions" if questions else "seeds"


def states_text(states: Mapping[State, int]) -> str:
    """Cells by state, e.g. ``2 done, 1 failed``."""
    return ", ".join(f"{count} {state}" for state, count in states.items())


def sentence(summary: Summary) -> str:
    """What the comparisons show, in one sentence; empty: there are none."""
    if summary.reference is None or not summary.comparisons:
        return ""
    found = [verdict(summary.measure, row.change) for row in summary.rows if row.change is not None]
    count = len(found)
    if found.count(ONE_SEED) == count:
        return (
            f"Every combination has one seed, so that {'the difference' if count == 1 else 'differences'} to "
            f"{summary.reference.name} may come from the seed alone."
        )
    told = [
        f"{found.count(word)} {'is' if found.count(word) == 1 else 'are'} {word}" for word in VERDICTS if word in found
    ]
    unsure = found.count(UNSURE) + found.count(ONE_SEED)
    told += [f"for {unsure} no difference is shown"] if unsure else []
    combinations = "1 combination" if count == 1 else f"{count} combinations"
    return f"Of {combinations} compared with {summary.reference.name}, {_joined(told)}."


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
