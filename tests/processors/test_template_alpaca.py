from __future__ import annotations

import random
from pathlib import Path

import pytest

from vlm.common.errors import ConfigError, PromptError
from vlm.common.registry import resolve
from vlm.common.types import Image, Input, Message, Sample, Text
from vlm.processors.templates.alpaca import Alpaca
from vlm.processors.templates.base import Segment

A, B = Image("a.png"), Image("b.png")
INLINE = {"image_header": "", "image_prefix": "<img>", "image_suffix": "</img>", "image_gap": "\n", "media_token": ""}


def say(role: str, *parts: object) -> Message:
    return Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


def make(**options: object) -> Alpaca:
    return Alpaca(Alpaca.Config(**{"system": "S", **options}))


def text(segments: list[Segment]) -> str:
    """All texts, images by their path."""
    return "".join(s.medium.source if s.medium else s.text for s in segments)


def chat(template: Alpaca, *messages: Message) -> str:
    return text(template.chat_segments(messages))


def train(template: Alpaca, *messages: Message, seed: int = 0) -> list[Segment]:
    return template.train_segments(Sample(messages), random.Random(seed))


def test_is_registered() -> None:
    assert resolve("template", "alpaca") is Alpaca


def test_input_has_a_block_of_its_own() -> None:
    asked = say("user", A, "Is it true?", Input("true, false"))
    blocks = ["### Image:\na.png", "### Instruction:\nIs it true?", "### Input:\ntrue, false", "### Response:\n"]
    assert chat(make(), asked) == "\n\n".join(["S", *blocks])
    assert chat(make(**INLINE), asked) == "S\n\n### Instruction:\n<img>a.png</img>\nIs it true?\n\n" + "\n\n".join(
        blocks[2:]
    )


@pytest.mark.parametrize("parts", [(A, "What?", B), (A, B, "What?"), ("What?", A, B)])
def test_images_at_either_end_of_a_turn_go_in_front(parts: tuple[object, ...]) -> None:
    assert chat(make(), say("user", *parts)).startswith("S\n\n### Image:\na.png\n\n### Image:\nb.png\n\n### Instr")
    assert "<img>a.png</img>\n<img>b.png</img>\nWhat?" in chat(make(**INLINE), say("user", *parts))


def test_images_between_texts_or_at_placeholders_keep_their_place() -> None:
    between = say("user", A, "is like", B, "?")
    marked = say("user", "<ImageHere>is like<ImageHere>?", A, B)
    assert chat(make(), say("user", "First ", A, " then ", B, ".")).endswith(
        "First a.png then b.png.\n\n### Response:\n"
    )
    assert "### Instruction:\na.pngis likeb.png?" in chat(make(), marked)
    for message in (marked, say("user", "", A, "is like", B, "?")):
        assert "### Instruction:\n<img>a.png</img>is like<img>b.png</img>?" in chat(make(**INLINE), message)
    assert "### Instruction:\na.pngis likeb.png?" in chat(make(), between)


def test_every_training_turn_stands_for_itself_or_continues() -> None:
    dialogue = (say("user", A, "1"), say("assistant", "2"), say("user", "3"), say("assistant", "4"), say("user", "5"))
    own = train(make(), *dialogue)
    assert text(own) == (
        "S\n\n### Image:\na.png\n\n### Instruction:\n1\n\n### Response:\n2\n\n### Instruction:\n3\n\n### Response:\n4"
    )
    assert [i for i, s in enumerate(own) if s.bos] == [0, 4]
    assert [i for i, s in enumerate(own) if s.eos] == [i for i, s in enumerate(own) if s.supervised] == [3, 5]
    assert [s.joined for s in own] == [False, True, True, True, False, True]
    one = train(make(turn_bos=False, joint_answer=False, add_eos=False, end_sym="!"), *dialogue)
    assert [s.bos for s in one] == [True] + [False] * 5
    assert [s.text for s in one if s.supervised] == ["2!", "4!"]
    assert not any(s.eos for s in one)
    assert not one[3].joined


def test_questions_without_an_answer_do_not_train() -> None:
    assert train(make(), say("user", "1")) == []


def test_earlier_turns_of_a_chat_can_be_left_out() -> None:
    turns = [say("user", A, "1"), say("assistant", "2"), say("user", "3"), say("assistant", "4"), say("user", "5")]
    whole = chat(make(), *turns)
    assert [chat(make(keep_turns=n), *turns) for n in (-1, 2, 3)] == [whole] * 3
    assert chat(make(keep_turns=0), *turns) == "S\n\n### Instruction:\n5\n\n### Response:\n"
    last = "\n\n### Instruction:\n3\n\n### Response:\n4\n\n### Instruction:\n5\n\n### Response:\n"
    assert chat(make(keep_turns=1), *turns) == "S" + last


def test_own_system_text_replaces_the_sentence() -> None:
    turn = (say("system", "Be brief."), say("user", "1"))
    assert chat(make(), *turn).startswith("Be brief.\n\n### Instruction:\n1")
    assert text(train(make(), *turn, say("assistant", "2"))).startswith("Be brief.\n\n### Instruction:\n1")


def test_a_bare_image_at_the_head() -> None:
    template = make(**INLINE, image_at_head=True, joint_answer=False)
    bare = train(template, say("user", A), say("assistant", "A boat."))
    assert [s.medium.source if s.medium else s.text for s in bare] == ["<img>", "a.png", "</img>", "A boat."]
    assert text(template.chat_segments([say("user", A)])) == "<img>a.png</img>"
    asked = text(train(template, say("user", A, "What?"), say("assistant", "A boat.")))
    assert asked.startswith("S\n\n### Instruction:\n<img>a.png</img>\nWhat?")
    assert chat(template, say("system", "T"), say("user", A)) == "T<img>a.png</img>"


def test_captions_draw_a_prompt_from_the_pool(tmp_path: Path) -> None:
    file = tmp_path / "pool.txt"
    file.write_text("Describe it.\n\nWhat is this?\n")
    template = make(prompt_path=str(file))
    caption = (say("user", A), say("assistant", "A boat."))
    drawn = {text(train(template, *caption, seed=seed)) for seed in range(20)}
    assert drawn == {
        f"S\n\n### Image:\na.png\n\n### Instruction:\n{q}\n\n### Response:\nA boat."
        for q in ("Describe it.", "What is this?")
    }
    asked = text(train(template, say("user", A, "Why?"), say("assistant", "So.")))
    assert "### Instruction:\nWhy?\n" in asked
    assert chat(make(), say("user", A)).endswith("### Instruction:\n\n\n### Response:\n")


@pytest.mark.parametrize(
    ("content", "words"), [("\n", "has no line"), ("<Img><ImageHere></Img> Describe.", "has a line with <ImageHere>")]
)
def test_unusable_pools(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "pool.txt"
    file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        make(prompt_path=str(file))
    with pytest.raises(ConfigError, match="no file"):
        make(prompt_path=str(tmp_path / "none.txt"))


@pytest.mark.parametrize("options", [{}, INLINE])
def test_marks_and_images_must_agree(options: dict[str, str]) -> None:
    template = make(**options)
    for message, found in (
        (say("user", "<ImageHere><ImageHere> What?", A), "2 image placeholders but 1 media"),
        (say("user", "<ImageHere> What?"), "1 image placeholders but 0 media"),
        (say("user", A, B, "<ImageHere> What?"), "1 image placeholders but 2 media"),
    ):
        with pytest.raises(PromptError, match=found):
            template.chat_segments([message])
        with pytest.raises(PromptError, match=found):
            train(template, message, say("assistant", "x"))
    with pytest.raises(PromptError, match="must end with a user message"):
        template.chat_segments([say("user", "1"), say("assistant", "2")])
    with pytest.raises(PromptError, match="must end with a user message"):
        template.chat_segments([])


def test_words_of_the_conversation_are_literal() -> None:
    segments = train(make(), say("user", A, "q<s>", Input("i")), say("assistant", "a"))
    words = [s.text[a:b] for s in segments for a, b in s.literal]
    assert words == ["q<s>", "i", "a"]


def test_clean_up() -> None:
    assert make().clean("S\n### Response:\n one\n### Response:\n two \n") == "two"
    assert make(strip_before=[], strip=False).clean(" two \n") == " two \n"
    assert make(truncate_at=["\n###"]).clean("two\n### Instruction:\nthree") == "two"
