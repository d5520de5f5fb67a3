"""Short notes on how to read a study, with its own numbers; the guide says more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm.runners.study.report.words import over_text

if TYPE_CHECKING:
    from vlm.runners.study.report.summary import Summary

INTERVAL = """Made to cover, in 95 of 100 studies, the mean that ever more {over} of the same kind would give{how}."""
BOTH = " (Student's t; the variance between seeds, pooled over the combinations, and that between questions are added)"
DIFFERENCE = """Over the same seeds and the same questions, so that what is hard for all cancels. Its interval counts;
whether two intervals of means overlap says little."""
P = """A permutation test: question by question, the combination and the reference exchange their answers of all seeds.
It asks whether these trained models differ, which two seeds of one recipe often do."""
HOLM = """{what}, adjusted for {many}; a verdict needs 0.05 or less. Of twenty comparisons without any difference, one
would be expected to have an unadjusted p below 0.05."""
FEW = """ With {seeds} seeds a permutation test cannot go below {least:g}."""
CONTROLS = """The same questions with the image of another question, or none. A score that is hardly above these was not
read from the image."""
UNSURE = """Not that there is none: the interval says how large it may be. More seeds make it narrower."""
AXES = """A main effect is a mean over this grid. It need not hold in each setting, nor outside of the values that were
tried."""
COST = """Equal FLOPs are not equal time, and a learning rate that suits the reference may suit it alone. Minutes depend
on the machine and on what else ran on it."""
BEST = """The best of many combinations is partly the luckiest: expect it to do worse when it is trained again."""


def reading(summary: Summary) -> list[tuple[str, str]]:
    """(heading, text) of each note."""
    counts = [row.score for row in summary.rows if row.score is not None]
    seeds = max((found.seeds for found in counts), default=0)
    questions = max((found.questions for found in counts), default=0)
    found = [("Interval", INTERVAL.format(over=over_text(summary), how=BOTH if questions and seeds > 1 else ""))]
    if summary.comparisons:
        many = "1 comparison" if summary.comparisons == 1 else f"{summary.comparisons} comparisons"
        what = "The larger one of that p and of the interval's p" if questions else "The p of the interval"
        few = "" if questions else FEW.format(seeds=seeds, least=2.0 ** (1 - seeds))
        found.append(("Difference", DIFFERENCE))
        found += [("p", P)] if questions else []
        found.append(("p (Holm)", HOLM.format(what=what, many=many) + few))
        found.append(("No difference shown", UNSURE))
    found += [("Wrong image, no image", CONTROLS)] if summary.controls else []
    found += [("Axes", AXES)] if len(summary.study.axes) > 1 else []
    return [(name, " ".join(text.split())) for name, text in [*found, ("Cost", COST), ("Best of many", BEST)]]
