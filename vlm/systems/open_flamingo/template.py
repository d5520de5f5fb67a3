"""OpenFlamingo's prompts: every turn is a chunk of images and text, ``<|endofchunk|>`` at its end.

``<image>Question:What is it? Short answer:a boat<|endofchunk|><image>Question:What colour? Short answer:``

A turn of images without words asks for a caption: ``<image>Output:a boat<|endofchunk|><image>Output:``. Turns in
front are the examples of few-shot prompting, and the earlier turns of a chat. Other forms are options, such as that
for hateful memes: ``question: "is an image with: '{}' written on it. Is it hateful? Answer:"``.
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
    ask_last,
    at_placeholders,
    literal_stretches,
    media_first,
    segments_of,
    turns_of,
    with_bos,
)


@register_template("open_flamingo")
class OpenFlamingo(BaseTemplate):
    """Chunks of images, question and answer. Raises ConfigError for a ``question`` without its place."""

    @dataclass
    class Config(BaseTemplate.Config):
        """Texts of a chunk; the defaults are those of OpenFlamingo's visual question answering and captioning."""

        system: str = ""  # in front of all
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
        system, turns = turns_of(sample.messages)
        answered = [(asked, answer) for asked, answer in turns if answer is not None]
        segments: list[Segment] = []
        pieces: list[Piece] = [self._system(system)]
        for number, (asked, answer) in enumerate(answered, start=1):
            turn = segments_of([*pieces, *self._asked(asked)], self.config.media_token)
            last = number == len(answered)
            segments += self._joined(turn, behind=bool(segments))
            segments += self._answer(answer.text, eos=self.config.add_eos and last)
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
        return [Segment(self.config.question.split("{}")[1]), *self._answer(text, eos=self.config.add_eos)]

    def _system(self, own: str | None) -> str:
        return self.config.system if own is None else own

    def _answer(self, text: str, eos: bool) -> list[Segment]:
        pieces = [UserText(text), self.config.end_sym]
        return [Segment("".join(pieces), supervised=True, eos=eos, joined=True, literal=literal_stretches(pieces))]

    @staticmethod
    def _joined(turn: list[Segment], behind: bool) -> list[Segment]:
        """``turn``, its first segment one text with the answer before it, if there is one."""
        return [replace(turn[0], joined=behind), *turn[1:]] if turn else turn

    def _asked(self, asked: Sequence[Message]) -> list[Piece]:
        """Images in front, or where they stand between words, and the words of a turn, up to the answer's place."""
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
