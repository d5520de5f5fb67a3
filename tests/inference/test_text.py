"""The streaming clean-up, on texts made to trip it."""

from __future__ import annotations

import pytest

from vlm.inference.streaming import StreamedText, TextStream, before, extend, join, marks_of


@pytest.fixture
def template(engine):
    return engine.processor.template


def stream(engine, template, text: str) -> list[StreamedText]:
    tokenizer = engine.processor.tokenizer
    out = TextStream(tokenizer, template.clean, marks_of(template))
    return [*(out.push(i) for i in tokenizer.encode(text)), out.finish()]


@pytest.mark.parametrize(
    "text",
    [
        "a red boat.###",
        "a red boat ### Human: next",
        "a # and ## and a tail#",
        "###",
        "####",
        "  spaces   inside  ",
        "Assistant: a boat",
        "As Assist Assistan",
        "é中 bytes é",
        "",
        "one\ntwo\n\n",
    ],
)
def test_pieces_add_up_to_the_cleaned_text(engine, template, text) -> None:
    deltas = stream(engine, template, text)
    whole = template.clean(engine.processor.tokenizer.decode(engine.processor.tokenizer.encode(text)))
    assert "".join(deltas) == whole
    assert not any(d.is_restart for d in deltas)


def test_a_second_role_in_the_answer_replaces_what_was_sent(engine, template) -> None:
    deltas = stream(engine, template, "first words Assistant: the answer")
    assert join(deltas) == "the answer"
    assert [d for d in deltas if d.is_restart]
    assert "first" in "".join(deltas)


def test_no_mark_is_ever_shown(engine, template) -> None:
    shown = ""
    for delta in stream(engine, template, "one two ### three"):
        shown = extend(shown, delta)
        assert "#" not in shown
    assert shown == "one two"


class Pieces:
    """A tokenizer whose tokens are pieces of text."""

    def stream(self) -> Pieces:
        return self

    def push(self, token: str) -> str:
        return token

    def flush(self) -> str:
        return ""


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_stop_texts_that_overlap(size) -> None:
    """The one that is complete first ends the answer, in whatever order they are given and however it is divided."""
    for stops in (("cd", "bcde"), ("bcde", "cd"), ("bcd", "cd"), ("a", "abc")):
        for text in ("xabcdefg", "xxabcdefg"):
            out = TextStream(Pieces(), str, stops, stops)  # type: ignore[arg-type]
            shown = "".join(out.push(text[at : at + size]) for at in range(0, len(text), size)) + out.finish()
            assert shown == before(text, stops) == text[: text.index({"a": "a", "bcd": "b"}.get(stops[0], "c"))]
