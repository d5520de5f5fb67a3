from __future__ import annotations

import random

import pytest

from vlm.common.errors import ConfigError, PromptError
from vlm.common.paths import CORPORA
from vlm.common.registry import resolve
from vlm.common.types import Image, Message, Sample, Text
from vlm.processors.templates.base import Segment
from vlm.systems.lynx.template import UserBot

A, B = Image("a.png"), Image("b.png")


def say(role: str, *parts: object) -> Message:
    return Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


def make(**options: object) -> UserBot:
    return UserBot(UserBot.Config(**options))


def show(segments: list[Segment]) -> list[str]:
    flags = ((lambda s: s.bos, "^"), (lambda s: s.supervised, "!"), (lambda s: s.joined, "+"), (lambda s: s.eos, "$"))
    return ["".join(f for on, f in flags if on(s)) + (s.medium.source if s.medium else s.text) for s in segments]


DIALOGUE = (say("user", A, "What IS it?"), say("assistant", "A Boat"), say("user", "Why?", B))


def test_is_registered() -> None:
    assert resolve("template", "user_bot") is UserBot


def test_images_stand_in_front_and_everything_is_lower_case() -> None:
    assert show(make().chat_segments(DIALOGUE)) == [
        "a.png", "b.png", "^user: what is it?\nbot: a boat\nuser: why?\nbot:",
    ]  # fmt: skip
    assert show(make(lower_text=False).chat_segments(DIALOGUE[:1])) == ["a.png", "^User: What IS it?\nBot:"]
    assert show(make().chat_segments([say("user", "Two?")])) == ["^user: two?\nbot:"]


def test_training_turns() -> None:
    dialogue = Sample((*DIALOGUE, say("assistant", "So"), say("user", "And?")))
    assert show(make().train_segments(dialogue, random.Random(0))) == [
        "a.png", "b.png", "^user: what is it?\nbot:", "!+$ a boat", "\nuser: why?\nbot:", "!+$ so",
    ]  # fmt: skip
    plain = make(add_eos=False, end_sym="\n", answer_prefix="").train_segments(dialogue, random.Random(0))
    assert show(plain)[3] == "!+a boat\n"


def test_published_variants_of_the_prompt() -> None:
    for slot in ("{}", "{question}"):
        short = make(prompt_template=f" User: {slot} Give a short answer.\nBot: ")
        shown = show(short.chat_segments([say("user", A, "Who?")]))
        assert shown == ["a.png", "^user: who? give a short answer.\nbot:"]
    for unusable in ("User:\nBot:", "User: {} {question}\nBot:"):
        with pytest.raises(ConfigError, match="needs exactly one"):
            make(prompt_template=unusable)


def test_own_system_text_and_marks() -> None:
    turns = [say("system", "Be brief."), say("user", A, "<ImageHere>Who?")]
    assert show(make().chat_segments(turns)) == ["a.png", "^be brief.\nuser: who?\nbot:"]
    trained = make().train_segments(Sample((*turns, say("assistant", "I"))), random.Random(0))
    assert show(trained) == ["a.png", "^be brief.\nuser: who?\nbot:", "!+$ i"]
    with pytest.raises(PromptError, match="2 image placeholders but 1 media"):
        make().chat_segments([say("user", A, "<ImageHere><ImageHere>Who?")])
    with pytest.raises(PromptError, match="must end with a user message"):
        make().chat_segments([say("assistant", "I")])


def test_words_of_the_conversation_are_literal() -> None:
    (segment,) = make().chat_segments([say("user", "A </s>"), say("assistant", "B"), say("user", "C")])
    assert [segment.text[a:b] for a, b in segment.literal] == ["a </s>", "b", "c"]


def test_whole_prompts_stand_behind_their_media() -> None:
    for text in ("User: Who?\nBot:", "User: <ImageHere>Who?\nBot:"):
        assert show(make().prompt_segments(text, [A])) == ["a.png", "^user: who?\nbot:"]
    assert show(make().prompt_segments("Hi </s>", [])) == ["^hi </s>"]
    assert make().prompt_segments("Hi </s>", [])[0].literal == ()
    with pytest.raises(PromptError, match="2 image placeholders but 1 media"):
        make().prompt_segments("<ImageHere><ImageHere>", [A])


def test_captions_get_a_prompt_of_the_pool() -> None:
    caption = Sample((Message("user", (A,)), say("assistant", "A boat")))
    assert show(make().train_segments(caption, random.Random(0))) == ["a.png", "^user: \nbot:", "!+$ a boat"]
    template = make(prompt_path=str(CORPORA / "pools" / "short_caption.txt"))
    drawn = {show(template.train_segments(caption, random.Random(seed)))[1] for seed in range(20)}
    assert len(drawn) > 3 and all(text.startswith("^user: ") and len(text) > 20 for text in drawn)
    assert show(template.chat_segments(caption.messages[:1])) == ["a.png", "^user: \nbot:"]
    assert show(template.train_segments(Sample(DIALOGUE[:2]), random.Random(0)))[1] == "^user: what is it?\nbot:"
    with pytest.raises(ConfigError, match="prompt_path: no file none.txt"):
        make(prompt_path="none.txt")
