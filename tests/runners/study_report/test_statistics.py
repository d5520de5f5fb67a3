"""Statistics of studies against values that were computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlm.runners.study.statistics import (
    Change,
    Estimate,
    Numbers,
    adjusted,
    difference,
    estimate,
    holm,
    interval,
    pooled_differences,
    pooled_means,
    question_variance,
    sign_flips,
    student,
    two_sided,
)
from vlm.tasks.scoring.statistics import Metric, per_item


def counted(*seeds: list[float], unit: str = "number", names: str = "abcdefgh") -> Numbers:
    """Numbers of seeds 0, 1, ... with a value per question."""
    return Numbers.of({k: per_item("a", list(names[: len(v)]), v, unit=unit) for k, v in enumerate(seeds)})


def losses(*values: float) -> Numbers:
    return Numbers(dict(enumerate(values)), better="lower", unit="number")


@pytest.mark.parametrize(
    ("free", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (30, 2.042), (1e9, 1.960)]
)
def test_quantiles_of_student_as_in_tables(free: float, expected: float) -> None:
    assert student(free) == pytest.approx(expected, abs=6e-4)
    assert two_sided(expected, [(1.0, free)]) == pytest.approx(0.05, abs=1e-4)
    assert student(5, 0.99) == pytest.approx(4.032, abs=1e-3)


def test_the_interval_of_losses_is_students_over_seeds() -> None:
    # mean 3, variance ((-1)^2 + 0 + 1^2) / 2 = 1, of the mean 1/3; t with 2 degrees of freedom is 4.3027
    found = estimate(losses(2, 3, 4))
    assert found is not None and found.value == 3 and found.spread == 1
    assert found.bounds == pytest.approx((3 - 4.3027 / math.sqrt(3), 3 + 4.3027 / math.sqrt(3)), abs=1e-3)
    alone = estimate(losses(2))
    assert alone is not None and alone.bounds is None and alone.half is None
    assert estimate(losses()) is None


def test_the_variances_of_seeds_and_questions_add_up() -> None:
    """Seeds have the means 2 and 4: variance 2, of the mean 1, 1 degree of freedom.

    Questions have the means 1, 2, 4, 5: variance (4 + 1 + 1 + 4) / 3 = 10/3, of the mean 5/6, 3 degrees of freedom.
    """
    found = estimate(counted([0, 1, 3, 4], [2, 3, 5, 6]))
    assert found is not None and found.value == 3 and (found.seeds, found.questions) == (2, 4)
    total = 1 + 5 / 6
    free = total**2 / (1**2 / 1 + (5 / 6) ** 2 / 3)
    assert found.half == pytest.approx(student(free) * math.sqrt(total))
    one = estimate(counted([1, 2, 4, 5]))
    assert one is not None and one.half == pytest.approx(3.182 * math.sqrt(5 / 6), abs=1e-3)


def test_three_seeds_that_differ_are_not_narrower_than_seeds_say() -> None:
    rng = np.random.default_rng(0)
    names = [str(k) for k in range(2000)]
    runs = {
        k: per_item("a", names, (rng.random(2000) < skill).astype(float)) for k, skill in enumerate((0.5, 0.6, 0.7))
    }
    found = estimate(Numbers.of(runs))
    assert found is not None and found.half is not None and found.spread is not None
    assert found.half > 0.95 * student(2) * found.spread / math.sqrt(3) > 0.2


def test_all_right_is_not_known_exactly() -> None:
    found = estimate(counted([1.0] * 8, [1.0] * 8, unit="share"))
    # four more questions, two of them right: 10 of 12, whose variance of the mean is 10/12 * 2/12 / 12
    assert found is not None and found.value == 1 and found.bounds is not None
    assert found.bounds == pytest.approx((1 - student(8) * math.sqrt(20 / 144 / 12), 1.0))
    # two more questions, of which each wins a half: (1/2 + 1/2) / 4^2
    assert question_variance(np.zeros(2), share=True, paired=True) == pytest.approx((1 / 16, 2))


def test_the_variance_between_seeds_is_pooled_but_an_unsteady_combination_keeps_its_own() -> None:
    # squares around the means: 2, 8 and 0, with 2 + 1 + 0 degrees of freedom
    tables = [losses(1, 2, 3), losses(0, 4), losses(7)]
    pooled = pooled_means(tables)
    assert pooled == pytest.approx((10 / 3, 3))
    found, lone, own = (estimate(table, pooled) for table in (tables[0], tables[2], losses(0, 10, 20)))
    assert found is not None and found.half == pytest.approx(student(3) * math.sqrt(10 / 9))
    assert lone is not None and lone.half == pytest.approx(student(3) * math.sqrt(10 / 3)), "others tell of one seed"
    assert own is not None and own.half == pytest.approx(student(3) * math.sqrt(100 / 3))


def test_what_a_seed_does_to_all_is_no_difference() -> None:
    a, b = losses(1, 5, 9), losses(2, 6, 10)
    assert pooled_differences([a, b]) == pytest.approx((0, 2), abs=1e-12)
    # of two combinations it is the variance of their differences, here of 1, 2, 3
    assert pooled_differences([a, losses(2, 7, 12)]) == pytest.approx((1, 2))
    # residuals of rows (0, 1), (0, 1), (0, 4) from row and column means, by hand: +-2/3, -1/3 ... and squares 3
    assert pooled_differences([losses(0, 1), losses(0, 1), losses(0, 4)]) == pytest.approx((2 * 3 / 2, 2))
    assert pooled_differences([losses(1), losses(2)]) == (0, 0) == pooled_means([])
    found = difference(losses(2, 7, 12), a, (4.0, 10.0))
    assert (
        found is not None
        and found.found.value == 2
        and found.found.half == pytest.approx(2.228 * math.sqrt(4 / 3), abs=1e-3)
    )


@pytest.mark.parametrize(
    ("values", "extreme", "of"),
    [
        ([1, 1, 1, -1], 10, 16),  # |sum| >= 2: all but the 6 of 16 with two minuses
        ([1, 1, 1, 1, 0], 2, 16),  # only all of one sign; what is equal does not count
        ([2, 1, 1], 2, 8),
        ([2, 1, -1], 6, 8),  # sums 4, 2, 2, 0 and their opposites: at least 2
        ([1 / 3, 2 / 3, -1 / 3], 6, 8),  # thirds, from three seeds: sums 4, 2, 2, 0
        ([1.0, math.sqrt(2), math.pi], 2, 8),
        ([1.0, math.sqrt(2), -math.pi], 8, 8),  # 0.727 is the smallest of all sums
        ([0.7, 0.0, 0.3, 0.6, -0.6], 8, 16),  # tenths: sums of 7 and 3 alone, or 12 more or less
    ],
)  # fmt: skip
def test_exact_permutations_are_counted(values: list[float], extreme: int, of: int) -> None:
    p, exact, least = sign_flips(np.asarray(values))
    brute = [
        abs(sum(s * v for s, v in zip(signs, values)))
        for signs in np.ndindex(*([2] * len(values)))
        for signs in [[1 - 2 * s for s in signs]]
    ]
    assert np.mean(np.asarray(brute) >= abs(sum(values)) - 1e-9) == pytest.approx(p), "by listing them"
    assert (p, exact) == (pytest.approx(extreme / of), True)
    assert least == 2 / 2 ** np.count_nonzero(values)


def test_large_tests_agree_with_the_normal_distribution() -> None:
    assert sign_flips(np.zeros(9)) == (1.0, True, 1.0)
    rng = np.random.default_rng(0)
    steps = np.where(rng.random(300) < 0.55, 1.0, -1.0)
    normal = math.erfc((abs(steps.sum()) - 1) / math.sqrt(2 * 300))  # continuity: sums are two apart
    assert sign_flips(steps)[0] == pytest.approx(normal, rel=0.01)
    drawn, exact, least = sign_flips(rng.normal(0.1, 1, 60))
    assert not exact and least == 1e-4 and 0.01 < drawn < 0.9
    assert sign_flips(np.ones(400))[0] == pytest.approx(2.0**-399), "all permutations, not a sample of them"


def test_seeds_that_answer_alike_are_not_more_questions() -> None:
    one, other = [1, 1, 1, 0, 1, 0, 1, 1], [0, 1, 0, 0, 1, 0, 0, 0]
    single = difference(counted(one, unit="share"), counted(other, unit="share"))
    triple = difference(counted(one, one, one, unit="share"), counted(other, other, other, unit="share"))
    assert single is not None and triple is not None
    assert single.p == triple.p == pytest.approx(2 / 16), "four questions differ, all the same way"
    assert single.seeds_p is None and not single.shown() and not adjusted([single])[0].shown(0.9)


def test_a_difference_is_over_shared_seeds_and_questions() -> None:
    mine = Numbers.of({s: per_item("a", ["x", "y", "z"], [1, 1, s]) for s in (1, 2)})
    theirs = Numbers.of({s: per_item("a", ["z", "x"], [s, 0]) for s in (2, 3)})
    found = difference(mine, theirs)
    assert found is not None and (found.found.seeds, found.found.questions, found.found.value) == (1, 2, 0.5)
    assert difference(losses(1, 2), Numbers({7: 1.0})) is None
    assert difference(Numbers.of({0: per_item("a", ["x"], [1])}), Numbers.of({0: per_item("a", ["y"], [1])})) is None


def test_numbers_that_are_no_means() -> None:
    rng = np.random.default_rng(0)
    names = [str(k) for k in range(120)]

    def f1(skill: float, seed: int) -> Metric:
        truth, said = np.random.default_rng(9).random(120) < 0.4, np.zeros(120, bool)
        said = np.where(rng.random(120) < skill, truth, ~truth)
        rows = np.stack([truth & said, ~truth & said, truth & ~said], axis=1).astype(float)
        return Metric("F1", names, rows, "f1")

    good, bad = ({s: f1(skill, s) for s in range(3)} for skill in (0.9, 0.6))
    found = difference(Numbers.of(good), Numbers.of(bad))
    assert found is not None and found.p == 1e-4 and not found.exact and found.found.bounds is not None
    assert found.found.value == pytest.approx(np.mean([good[s].value() - bad[s].value() for s in range(3)]))  # type: ignore[operator]
    assert 0 < found.found.bounds[0] < found.found.value < found.found.bounds[1]
    same = difference(Numbers.of(good), Numbers.of(good))
    assert same is not None and same.p == 1 and not same.shown()


def test_holm_as_in_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    assert holm([0.02]) == [0.02]


def test_a_verdict_needs_the_questions_and_the_seeds() -> None:
    def change(p: float, seeds_p: float | None, questions: int = 9) -> Change:
        return Change(Estimate(0.1, (0.0, 0.2), 3, questions), p, True, 0.0, seeds_p)

    first, second, third = adjusted([change(0.001, 0.02), change(0.03, 0.001), change(0.2, 0.001, questions=0)])
    assert [c.joint for c in (first, second, third)] == [0.02, 0.03, 0.001], "losses have no questions to exchange"
    assert (first.adjusted, second.adjusted, third.adjusted) == pytest.approx((0.04, 0.04, 0.003))
    assert first.shown() and not adjusted([change(0.001, 0.06)])[0].shown()
    assert interval(1.0, [(0.0, 0.0)]) is None and interval(1.0, [(0.0, 2.0)]) == (1.0, 1.0)


@pytest.mark.heavy
def test_verdicts_hold_where_only_seeds_differ() -> None:
    """60 made-up studies of six equal combinations: seeds move the share of right answers by about 8 points."""
    rng, names, studies = np.random.default_rng(0), [str(k) for k in range(240)], 60
    normal = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))
    wrong = by_questions = covered = 0
    for _ in range(studies):
        hard = rng.normal(0, 1, 240)
        tables = [
            Numbers.of(
                {
                    s: per_item("a", names, (rng.random(240) < normal(0.5 + rng.normal(0, 0.3) + hard)).astype(float))
                    for s in range(3)
                }
            )
            for _ in range(6)
        ]
        pooled = pooled_differences(tables)
        found = [difference(table, tables[0], pooled) for table in tables[1:]]
        changes = adjusted([change for change in found if change is not None])
        wrong += any(change.shown() for change in changes)
        by_questions += any(p <= 0.05 for p in holm([change.p for change in changes]))
        covered += sum(c.found.bounds is not None and c.found.bounds[0] <= 0 <= c.found.bounds[1] for c in changes)
    assert covered / studies / 5 > 0.92 and wrong / studies < 0.12
    assert by_questions / studies > 0.6, "the permutation test alone would find differences that are of the seeds"
