"""OpenFlamingo's prompts: every turn is a chunk of images and text that ends with ``<|endofchunk|>``.

``<image>Question:What is it? Short answer:a boat<|endofchunk|><image>Question:What colour? Short answer:``

A turn of images without words asks for a caption: ``<image>Output:a boat<|endofchunk|><image>Output:``. Earlier
turns are the examples of few-shot prompting, or those of a chat. Other forms are options, such as the one for
hateful memes: ``question: "is an image with: '{}' written on it. Is it hateful? Answer:"``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vlm.common.errors import ConfigError
from vlm.common.registry import register_template
from vlm.common.types import Message, Sample, Text
from vlm.processors.templates.base import (
    IMAGE_PLACEHOLDER,
    BaseTemplate,
    Piece,
    Segment,
    UserText,
    answer_segment,
    answered_turns,
    ask_last,
    at_placeholders,
    media_first,
    segments_of,
    turns_of,
    with_bos,
)


@register_template("open_flamingo")
class OpenFlamingo(BaseTemplate):
    """Chunks of images, question and answer. Raises ConfigError for a ``question`` without ``{}``."""

    @dataclass
    class Config(BaseTemplate.Config):
        """Texts of a chunk; the defaults are those of OpenFlamingo's visual question answering and captioning."""

        system: str = ""  # before everything
        question: str = "Question:{} Short answer:"  # around the words of a turn
        caption_prompt: str = "Output:"  # after the images of a turn without words
        media_token: str = "<image>"
        end_sym: str = "<|endofchunk|>"  # after every answer
        add_eos: bool = True  # training: the end id after the last answer
        stop: list[str] = field(default_factory=lambda: ["<|endofchunk|>"])
        truncate_at: list[str] = field(default_factory=lambda: ["Question:", "Short answer:", "Output:"])

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: OpenFlamingo.Config = config
        if config.question.count("{}") != 1:
            raise ConfigError(
                f"template.question {config.question!r} needs exactly one {{}}",
                fix="write {} where the question goes, e.g. 'Question:{} Short answer:'",
            )
        if config.prompt_path:
            raise ConfigError(
                "template.prompt_path has no effect with open_flamingo",
                fix="set template.caption_prompt, the text of a caption",
            )

    def train_segments(self, sample: Sample, rng: random.Random) -> list[Segment]:
        """See :meth:`BaseTemplate.train_segments`. Questions without an answer are left out."""
        system, turns = answered_turns(sample.messages)
        segments: list[Segment] = []
        pieces: list[Piece] = [self._system(system)]
        for number, (asked, answer) in enumerate(turns, start=1):
            turn = segments_of([*pieces, *self._asked(asked)], self.config.media_token)
            segments += [replace(s, joined=bool(segments)) if s is turn[0] else s for s in turn]
            segments.append(self._answer(answer, eos=self.config.add_eos and number == len(turns)))
            pieces = []
        return with_bos(segments)

    def chat_segments(self, messages: Sequence[Message]) -> list[Segment]:
        """See :meth:`BaseTemplate.chat_segments`: one text."""
        ask_last(messages)
        system, turns = turns_of(messages)
        pieces: list[Piece] = [self._system(system)]
        for asked, answer in turns:
            pieces += self._asked(asked)
            pieces += [UserText(answer.text), self.config.end_sym] if answer is not None else []
        return with_bos(segments_of(pieces, self.config.media_token))

    def answer_segments(self, text: str) -> list[Segment]:
        """See :meth:`BaseTemplate.answer_segments`."""
        return [Segment(self.config.question.split("{}")[1]), self._answer(text, eos=self.config.add_eos)]

    def _system(self, own: str | None) -> str:
        return self.config.system if own is None else own

    def _answer(self, text: str, eos: bool) -> Segment:
        return answer_segment(UserText(text), self.config.end_sym, eos=eos, joined=True)

    def _asked(self, asked: Sequence[Message]) -> list[Piece]:
        """Images, first or at their places between words, and the words of a turn, up to where the answer begins."""
        media, content = media_first([p for m in asked for p in m.parts])
        text = UserText("\n".join(t for m in asked if (t := m.text)))
        if not text.strip():
            return [*media, self.config.caption_prompt]
        before, after = self.config.question.split("{}")
        if media or not any(m.media for m in asked):
            return [*media, before, text, after]
        if IMAGE_PLACEHOLDER in text:
            return [before, *at_placeholders(text, [p for p in content if not isinstance(p, Text)]), after]
        return [before, *(UserText(p.text) if isinstance(p, Text) else p for p in content), after]
