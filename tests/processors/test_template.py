from __future__ import annotations

import random
from pathlib import Path

import pytest

from vlm.common.errors import ConfigError, PromptError
from vlm.common.registry import names, resolve
from vlm.common.types import Image, Message, Sample, Text
from vlm.processors.templates.roles import Plain, Segment, Template
from vlm.systems.minigpt4.template import Llama2, MiniGPTv2, Vicuna0

IMAGE, OTHER = Image("a.png"), Image("b.png")


def say(role: str, *parts: object) -> Message:
    return Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


def show(segments: list[Segment]) -> list[str]:
    """One string per segment; images as their path, answers marked."""
    return [s.medium.source if s.medium else ("!" if s.supervised else "") + s.text for s in segments]


def train(template: Template, *messages: Message, seed: int = 0) -> list[str]:
    segments = template.train_segments(Sample(messages), random.Random(seed))
    assert [s.bos for s in segments] == [True] + [False] * (len(segments) - 1)
    return show(segments)


DIALOGUE = (
    say("user", IMAGE, "What is it?"),
    say("assistant", "a boat"),
    say("user", "Which color?"),
    say("assistant", "red"),
)


def test_presets_are_registered() -> None:
    assert {"vicuna0", "llama2", "minigpt_v2", "plain"} <= set(names("template"))
    assert resolve("template", "minigpt_v2") is MiniGPTv2


def test_vicuna_dialogue_in_the_prompt_form() -> None:
    assert train(Vicuna0(Vicuna0.Config()), *DIALOGUE) == [
        "###Human: <Img>",
        "a.png",
        "</Img> What is it? ###Assistant: ",
        "!a boat###",
        "Human: Which color?###Assistant: ",
        "!red###",
    ]


@pytest.mark.parametrize("kind", [Vicuna0, Llama2, MiniGPTv2])
def test_a_dialogue_keeps_system_text_and_roles_where_a_question_is_an_image_alone(kind: type[Template]) -> None:
    template = kind(kind.Config(prompt_template="[Q] {} [A]"))
    system, later = say("system", "You are a doctor."), [say("user", "Colour?"), say("assistant", "Red.")]
    shown = train(template, system, say("user", IMAGE), say("assistant", "A card."), *later)
    assert shown[0] == "You are a doctor.[Q] <Img>"
    assert "[A]" in shown[2]
    assert shown[3].startswith("!A card.")
    without = train(template, say("user", IMAGE), say("assistant", "A card."), *later)
    assert without == ["[Q] <Img>", *shown[1:]]
    alone = train(template, say("user", IMAGE), say("assistant", "A card."))
    assert alone[0] == "a.png"  # a caption, as published
    assert train(template, system, say("user", IMAGE), say("assistant", "A card.")) == shown[:4]


def test_pools_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_bytes("\ufeff<ImageHere>One\u0085.\r\n<ImageHere>Two.\r\n".encode())
    assert [p.rstrip("\r") for p in Vicuna0(Vicuna0.Config(prompt_path=str(pool))).prompts] == [
        "<ImageHere>One\u0085.",
        "<ImageHere>Two.",
    ]


def test_chat_form_trains_on_the_chat_text() -> None:
    template = Vicuna0(Vicuna0.Config(system="", chat_form=True))
    trained = train(template, *DIALOGUE)
    assert trained == [
        "###Human: <Img>",
        "a.png",
        "</Img> What is it?###Assistant: ",
        "!a boat###",
        "Human: Which color?###Assistant: ",
        "!red###",
    ]
    chat = template.chat_segments(DIALOGUE[:3])
    assert show(chat) == [t.removeprefix("!") for t in trained[:-1]]
    assert not any(s.supervised for s in chat)


@pytest.mark.parametrize("style", ["2024", "2023-04"])
def test_chat_form_agrees_with_training_for_every_system_and_style(style: str) -> None:
    template = Vicuna0(Vicuna0.Config(chat_form=True, style=style))
    trained = train(template, say("system", "Be brief."), *DIALOGUE)
    chat = show(template.chat_segments([say("system", "Be brief."), *DIALOGUE[:3]]))
    assert chat == [t.removeprefix("!") for t in trained[:-1]]
    assert chat[0] == "Be brief.###Human: <Img>"


def test_v2_dialogue_and_trailing_space_of_questions_with_images() -> None:
    template = MiniGPTv2(MiniGPTv2.Config())
    assert train(template, *DIALOGUE) == [
        "[INST] <Img>",
        "a.png",
        "</Img> What is it?  [/INST]",
        "!a boat</s>",
        "<s>[INST] Which color?  [/INST]",
        "!red</s>",
    ]
    assert train(template, say("user", "Hi"), say("assistant", "Yes")) == ["[INST] Hi [/INST]", "!Yes</s>"]


def test_chat_template_off_leaves_the_question_bare() -> None:
    template = MiniGPTv2(MiniGPTv2.Config(chat_template=False))
    assert train(template, say("user", IMAGE, "Hi"), say("assistant", "Yes")) == [
        "<Img>",
        "a.png",
        "</Img> Hi ",
        "!Yes</s>",
    ]


def test_caption_without_pool_has_no_prompt() -> None:
    for template in (Plain(Plain.Config()), Vicuna0(Vicuna0.Config(end_sym="\n"))):
        assert train(template, say("user", IMAGE), say("assistant", "a boat")) == ["a.png", "!a boat\n"]


def test_caption_with_pool_draws_a_prompt_per_sample(tmp_path: Path) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("<Img><ImageHere></Img> One.\nno mark here\n<Img><ImageHere></Img> Two.\n")
    template = Vicuna0(Vicuna0.Config(prompt_path=str(pool)))
    drawn = {tuple(train(template, say("user", IMAGE), say("assistant", "a"), seed=s)) for s in range(20)}
    assert drawn == {("###Human: <Img>", "a.png", f"</Img> {n}. ###Assistant: ", "!a###") for n in ("One", "Two")}
    again = [train(template, say("user", IMAGE), say("assistant", "a"), seed=7) for _ in range(2)]
    assert again[0] == again[1]


def test_images_at_any_place_and_at_placeholders() -> None:
    template = Llama2(Llama2.Config())
    question = say("user", "Compare ", IMAGE, "with", OTHER, ", please.")
    assert show(template.chat_segments([question]))[1:] == [
        "a.png",
        "</Img> with<Img>",
        "b.png",
        "</Img> , please. [/INST] ",
    ]
    marked = say("user", IMAGE, OTHER, "<ImageHere>|<ImageHere>?")
    assert train(template, marked, say("assistant", "yes")) == [
        "[INST] ",
        "a.png",
        "|",
        "b.png",
        "? [/INST] ",
        "!yes</s>",
    ]


def test_published_open_turn_of_both_releases() -> None:
    for style, end in (("2024", "###Human: Is it###Assistant: "), ("2023-04", "###Human: Is it###Assistant:")):
        text = show(Vicuna0(Vicuna0.Config(style=style)).chat_segments([say("user", "Is it")]))[0]
        assert text.endswith(end)


def test_system_text_of_a_training_sample_comes_first() -> None:
    template = Llama2(Llama2.Config())
    got = train(template, say("system", "Be kind. "), say("user", "Hi"), say("assistant", "Yes"))
    assert got == ["Be kind. [INST] Hi [/INST] ", "!Yes</s>"]


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("a boat", "a boat"),
        (" a boat.###Human: and", "a boat."),
        ("Human: x Assistant: a boat ### Assistant: no", "a boat"),
        ("", ""),
    ],
)
def test_clean(raw: str, answer: str) -> None:
    assert Vicuna0(Vicuna0.Config()).clean(raw) == answer


def test_clean_batch() -> None:
    assert Template.clean_batch("<s>[INST] q [/INST] a boat </s></s>") == "a boat"


@pytest.mark.parametrize(("marks", "count"), [(0, 1), (2, 1), (1, 0), (1, 2)])
def test_marks_and_media_must_agree(marks: int, count: int) -> None:
    template = Plain(Plain.Config())
    with pytest.raises(PromptError, match=f"{marks} image placeholders but {count} media"):
        template.prompt_segments("<ImageHere> x " * marks, [IMAGE] * count)


def test_a_pool_prompt_with_another_number_of_marks(tmp_path: Path) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("<ImageHere> and <ImageHere>\n")
    with pytest.raises(PromptError, match="2 image placeholders but 1 media"):
        train(Vicuna0(Vicuna0.Config(prompt_path=str(pool))), say("user", IMAGE), say("assistant", "a"))


def test_a_chat_must_end_with_a_question() -> None:
    template = Plain(Plain.Config())
    for messages in ([], [say("user", "Hi"), say("assistant", "Yes")]):
        with pytest.raises(PromptError, match="must end with a user message"):
            template.chat_segments(messages)


def test_unusable_pools_and_templates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        Vicuna0(Vicuna0.Config(prompt_path=str(tmp_path / "none.txt")))
    (tmp_path / "pool.txt").write_text("Describe.\n")
    with pytest.raises(ConfigError, match="no line with <ImageHere>"):
        Vicuna0(Vicuna0.Config(prompt_path=str(tmp_path / "pool.txt")))
    with pytest.raises(ConfigError, match="exactly one {}"):
        Vicuna0(Vicuna0.Config(prompt_template="###Human: "))


def test_no_gap_after_an_image_and_no_separator_without_a_system_text() -> None:
    plain = {"user": "U: ", "assistant": "A: ", "sep": "\n", "image_prefix": "", "image_suffix": ""}
    old = Template(Template.Config(**plain))
    template = Template(Template.Config(**plain, image_gap="", bare_start=True, system_role="S: "))
    question, system = say("user", IMAGE, "What?"), say("system", "Be kind.")
    assert show(old.chat_segments([question])) == ["\nU: ", "a.png", " What?\nA: "]
    assert show(template.chat_segments([question])) == ["U: ", "a.png", "What?\nA: "]
    assert show(template.chat_segments([say("system", ""), question])) == ["U: ", "a.png", "What?\nA: "]
    assert show(template.chat_segments([system, question]))[0] == "S: Be kind.\nU: "
    assert train(template, system, say("user", "Hi"), say("assistant", "Yes"))[0] == "S: Be kind.Hi"
