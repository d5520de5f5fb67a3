from __future__ import annotations

import logging
from typing import Any

import pytest

from vlm.common.errors import DataError, PromptError
from vlm.common.types import Image, Message, Text, Video
from vlm.processors.messages import to_messages
from vlm.processors.placeholders import attach_media, place_media

A, B, C, V = Image("a"), Image("b"), Image("c"), Video("v")


def show(parts: Any) -> list[str]:
    return [p.text if isinstance(p, Text) else f"[{p.source}]" for p in parts]


@pytest.mark.parametrize(
    ("text", "media", "wanted"),
    [
        ("<image>\nSame as <image>?", [A, B], ["[a]", "Same as ", "[b]", "?"]),
        ("Same?", [A, B], ["[a]", "[b]", "Same?"]),
        ("Same as <image>?", [A, B], ["[a]", "Same as ", "[b]", "?"]),
        ("Then <image> and <image>", [A, B, C], ["[a]", "Then ", "[b]", " and ", "[c]"]),
        ("<video> before <image>", [A, V], ["[v]", " before ", "[a]"]),
        ("<image> moves", [V], ["[v]", " moves"]),
        ("<video> moves", [A, V], ["[a]", "[v]", " moves"]),
        ("<image>", [A], ["[a]"]),
    ],
)
def test_the_same_places_in_records_and_in_chat(text: str, media: list, wanted: list[str]) -> None:
    assert show(attach_media([("user", text), ("assistant", "x")], media, "r", first=False)[0].parts) == wanted
    assert show(place_media([*media, Text(text)], "q")) == wanted
    if V not in media:
        for question in (text, Message("user", text), [{"role": "user", "content": text}]):
            found = to_messages(question, image=[m.source for m in media])
            assert show(found[-1].parts) == wanted


def test_images_beyond_the_placeholders_go_to_the_first_question() -> None:
    turns: list = [("system", "S"), ("user", "Hi"), ("assistant", "Yes"), ("user", "And <image>?"), ("assistant", "No")]
    shown = [show(m.parts) for m in attach_media(turns, [A, B], "r", first=False)]
    assert shown == [["S"], ["[a]", "Hi"], ["Yes"], ["And ", "[b]", "?"], ["No"]]


@pytest.mark.parametrize(
    ("turns", "media", "words"),
    [
        ([("user", "<image><image>")], [A], "r: 2 <image> placeholders but 1 images"),
        ([("user", "<image>")], [], "r: 1 <image> placeholders but 0 images"),
        ([("user", "Draw"), ("assistant", "Here: <image>")], [A], "r: an image in an answer"),
        ([("system", "Logo: <video>"), ("user", "Whose?")], [A], "r: an image in a system text"),
        ([("system", "S")], [A], "1 images but no question"),
    ],
)
def test_unusable_records(turns: list, media: list, words: str) -> None:
    with pytest.raises(DataError, match=words):
        attach_media(turns, media, "r")


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_media_are_the_users_alone(role: Any) -> None:
    with pytest.raises(PromptError, match=f"an image or video in the {role}'s message"):
        Message(role, ["Here:", A])


def test_typed_without_an_image_it_is_words_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert show(to_messages("What does <image> mean?")[0].parts) == ["What does <image> mean?"]
    assert "<image> is read as words" in caplog.text
    with pytest.raises(DataError, match="the question: 2 <image> placeholders but 1 images"):
        to_messages("<image> and <image>", image="a.png")
