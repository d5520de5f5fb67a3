"""Scores as pure functions, on numbers computed by hand."""

import pytest

from vlm.tasks.metrics import exact_match, majority, majority_answers, summarise

RECORDS = [
    {"type": "color", "answer": "red", "objects": 1, "unseen_pair": False},
    {"type": "color", "answer": "red", "objects": 2, "unseen_pair": True},
    {"type": "color", "answer": "blue", "objects": 1, "unseen_pair": True},
    {"type": "count", "answer": "two", "objects": 2, "unseen_pair": False},
    {"type": "count", "answer": "one", "objects": 1, "unseen_pair": False},
]


@pytest.mark.parametrize(
    "answer, right", [("red", True), (" red\n", True), ("Red", False), ("red.", False), ("", False)]
)
def test_exact_match_ignores_outer_space_only(answer, right):
    assert exact_match(answer, "red") is right


def test_summary_by_type_objects_and_pairs():
    found = summarise(RECORDS, [True, True, False, True, False])
    assert found["overall"] == 0.6 and found["count"] == 5
    assert found["by_type"] == {"color": pytest.approx(2 / 3), "count": 0.5}
    assert found["by_objects"] == {"1": pytest.approx(1 / 3), "2": 1.0}
    assert found["unseen_pairs"] == 0.5 and found["seen_pairs"] == pytest.approx(2 / 3)
    assert found["counts"] == {
        "seen_pairs": 3, "unseen_pairs": 2, "by_type": {"color": 3, "count": 2}, "by_objects": {"1": 3, "2": 2},
    }  # fmt: skip


def test_summary_without_the_optional_fields():
    found = summarise([{"answer": "x"}], [True])
    assert found["overall"] == 1.0 and found["unseen_pairs"] is None and found["by_type"] == {}
    assert summarise([], [])["overall"] is None


def test_majority_is_per_type_and_ties_are_alphabetical():
    assert majority_answers(RECORDS) == {"color": "red", "count": "one"}
    found = majority(RECORDS)
    assert found["overall"] == 0.6 and found["by_type"] == {"color": pytest.approx(2 / 3), "count": 0.5}
    assert found["answers"] == {"color": "red", "count": "one"}
