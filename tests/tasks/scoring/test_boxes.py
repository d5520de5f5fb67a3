"""Boxes in answers, and how far two of them agree."""

import pytest

from vlm.tasks.scoring.boxes import has_center, iou, read_box, read_floats, read_hundredths, scaled

HALF = (0.0, 0.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("other", "exclusive", "inclusive"),
    [
        ((0, 0, 10, 10), 1.0, 1.0),
        ((0, 0, 10, 5), 0.5, 66 / 121),
        ((5, 5, 15, 15), 25 / 175, 36 / 206),
        ((10, 10, 20, 20), 0.0, 1 / 241),
        ((30, 30, 40, 40), 0.0, 0.0),
        ((10, 10, 0, 0), 0.0, 0.0),  # corners exchanged
        ((0, 0, 0, 0), 0.0, 1 / 121),
    ],
)
def test_iou(other: tuple, exclusive: float, inclusive: float) -> None:
    assert iou(HALF, other) == iou(other, HALF) == pytest.approx(exclusive)
    assert iou(HALF, other, plus_one=True) == pytest.approx(inclusive)


def test_two_boxes_without_an_area_share_nothing() -> None:
    assert iou((3, 3, 3, 3), (3, 3, 3, 3)) == 0.0
    assert iou((0, 0, -1, 4), (0, 0, -1, 4), plus_one=True) == 0.0


@pytest.mark.parametrize(
    ("text", "any_form", "braces", "floats"),
    [
        ("{<12><30><55><88>}", (0.12, 0.3, 0.55, 0.88), (0.12, 0.3, 0.55, 0.88), None),
        ("<unk> {<12> <30><55> <88>} ", (0.12, 0.3, 0.55, 0.88), (0.12, 0.3, 0.55, 0.88), None),
        ("It is at {<12><30><55><88>}", (0.12, 0.3, 0.55, 0.88), None, None),
        ("{<12><30><55><88>} or 2", (0.12, 0.3, 0.55, 0.88), None, None),
        ("{<12><30><55><88>}{<1><2><3><4>}", (0.12, 0.3, 0.55, 0.88), None, None),
        ("{<12><300><55><88>}", None, (0.12, 3.0, 0.55, 0.88), None),
        ("{12,30,55,88}", None, None, None),
        ("[0.12, 0.3,.55, 1]", (0.12, 0.3, 0.55, 1.0), None, None),
        ("box: [0.12, 0.3, 0.55, 1.0].", (0.12, 0.3, 0.55, 1.0), None, (0.12, 0.3, 0.55, 1.0)),
        ("(0.12,0.3,0.55,1)", (0.12, 0.3, 0.55, 1.0), None, None),
        ("[[120, 300, 550, 880]]", (0.12, 0.3, 0.55, 0.88), None, (120.0, 300.0, 550.0, 880.0)),
        ("<ref>a cup</ref><box>(120,300),(550,880)</box>", (0.12, 0.3, 0.55, 0.88), None, None),
        ("[-5, 300, 550, 880]", None, None, (-5.0, 300.0, 550.0, 880.0)),
        ("[120, 300, 550, 1280]", None, None, (120.0, 300.0, 550.0, 1280.0)),
        ("[0.12, 0.3, nan, 1.0]", None, None, None),
        ("I see no cup.", None, None, None),
    ],
)
def test_reading(text: str, any_form: tuple | None, braces: tuple | None, floats: tuple | None) -> None:
    for found, expected in zip((read_box(text), read_hundredths(text), read_floats(text)), (any_form, braces, floats)):
        assert found == (None if expected is None else pytest.approx(expected))


def test_center_and_scale() -> None:
    assert scaled((0.1, 0.2, 0.5, 1.0), 640, 480) == pytest.approx((64, 96, 320, 480))
    assert has_center(HALF, (8, 8, 12, 12)) and not has_center(HALF, (8, 8, 14, 12))
