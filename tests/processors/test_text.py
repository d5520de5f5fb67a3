from __future__ import annotations

import pytest

from vlm.common.registry import resolve


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Don't STOP, ok?", "don't stop, ok?"),
        ("<b> {x} [y]", "<b> {x} [y]"),
        ("~~ one ~~", "one"),
        ("", ""),
        ("a\n\nb\n", "a b"),
    ],
)
def test_blip_caption(raw: str, clean: str) -> None:
    kind = resolve("processor", "blip_caption")
    assert kind(kind.Config())(raw) == clean


def test_prompt_and_word_limit() -> None:
    kind = resolve("processor", "blip_caption")
    assert kind(kind.Config(prompt="an image of ", max_words=2))("One two three") == "an image of one two"
