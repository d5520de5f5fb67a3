"""Short notes on how to read a study, with its own numbers; the guide says more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm.runners.study.report.summary import Summary


def reading(summary: Summary) -> list[tuple[str, str]]:
    """(heading, text) of each note."""
    counts = [row.score for row in summary.rows if row.score is not None]
    seeds = max((found.seeds for found in counts), default=0)
    questions = max((found.questions for found in counts), default=0)
    over = "seeds and questions" if questions and seeds > 1 else "questions" if questions else "seeds"
    many = summary.comparisons
    found = [
        (
            "Interval",
            f"Where the mean would be with other {over} of the same kind, in 95 of 100 studies (Student's t; the variance "
            "between seeds, pooled over the combinations, and that between questions are added).",
        ),
        (
            "Difference",
            "Over the same seeds and the same questions, so that what is hard for all cancels. Its interval counts; "
            "whether two intervals of means overlap says little.",
        ),
    ]
    if many and questions:
        found.append(
            (
                "p",
                "A permutation test: question by question, the combination and the reference exchange their answers of all "
                "seeds. It asks whether these trained models differ, which two seeds of one recipe often do.",
            )
        )
    if many:
        what = "The larger one of that p and of the interval's p" if questions else "The p of the interval"
        least = f" With {seeds} seeds a permutation test cannot go below {2.0 ** (1 - seeds):g}." if not questions else ""
        found.append(
            (
                "p (Holm)",
                f"{what}, adjusted for {many} comparison{'s' if many > 1 else ''}; a verdict needs 0.05 or less. Of twenty "
                f"comparisons without any difference, one would be expected to have an unadjusted p below 0.05.{least}",
            )
        )
    if summary.controls:
        found.append(
            (
                "Wrong image, no image",
                "The same questions with the image of another question, or none. A score that is hardly above these was "
                "not read from the image.",
            )
        )
    found += [
        (
            "No difference shown",
            "Not that there is none: the interval says how large it may be. More seeds make it narrower.",
        ),
        (
            "Axes",
            "A main effect is a mean over this grid. It need not hold in each setting, nor outside of the values that "
            "were tried.",
        ),
        (
            "Cost",
            "Equal FLOPs are not equal time, and a learning rate that suits the reference may suit it alone. Minutes "
            "depend on the machine and on what else ran on it.",
        ),
        (
            "Best of many",
            "The best of many combinations is partly the luckiest: expect it to do worse when it is trained again.",
        ),
    ]
    return found
