"""Scores of single texts."""

import pytest

from vlm.tasks.scoring.texts import anls, bare, contains, edits, relaxed


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("It is a cat.", "cat", True),
        ("A Category", "cat", False),
        ("12 cats", "2", False),
        ("2, I think", "2", True),
        ("a  traffic\nlight", "Traffic light", True),
        ("这是一只猫。", "猫", True),
        ("C++ code", "c++", True),
        ("anything", "", False),
        ("(a.b)", "a.b", True),
        ("axb", "a.b", False),
    ],
)
def test_contains(answer: str, reference: str, right: bool) -> None:
    assert contains(answer, reference) is right


@pytest.mark.parametrize(("a", "b", "expected"), [("kitten", "sitting", 3), ("", "abc", 3), ("ab", "ab", 0)])
def test_edits(a: str, b: str, expected: int) -> None:
    assert edits(a, b) == edits(b, a) == expected


def test_anls_takes_the_best_reference_and_nothing_below_the_threshold() -> None:
    assert anls("Hello  World", ["goodbye", "hello world"]) == 1 - 0 / 12
    assert anls("helo", ["hello"]) == pytest.approx(0.8)
    assert anls("ab", ["ax"]) == 0.5
    assert anls("abc", ["axy"]) == 0
    assert anls("abc", ["axy"], threshold=0.3) == pytest.approx(1 / 3)
    assert anls("", [""]) == 1 and anls("x", []) == 0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("-95", "-100", True),
        ("50%", "0.5", True),
        ("Blue", "blue", True),
        ("0.01", "0", False),
        ("0", "0", True),
        ("about 100", "100", False),
    ],
)
def test_relaxed_accuracy(answer: str, reference: str, right: bool) -> None:
    assert relaxed(answer, reference) is right


def test_bare() -> None:
    assert bare("It's RED.") == "its red"
