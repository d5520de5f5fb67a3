"""``### Instruction: ... ### Response: ``, the format of Alpaca and of the models tuned on its data.

A prompt is a system sentence and blocks, each after ``sep``; a block is a header and its content::

    Below is an instruction ... the request.

    ### Image:
    <image>

    ### Instruction:
    What is it?

    ### Input:
    boat, car

    ### Response:
    A boat.

The defaults are Multimodal-GPT's: an image has a block of its own and is one special token; question and
answer are tokenised as one text; each training turn has its own begin and end id, later ones without the
system sentence, while a chat is one text. Other published forms are options: no image block
(``image_header: ""``), the image before the instruction's text between ``image_prefix`` and
``image_suffix``, answers tokenised on their own, and one begin id for the whole dialogue.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from vlm.common.bounds import Range
from vlm.common.registry import register_template
from vlm.common.types import Input, Message, Sample, Text
from vlm.common.types import Part as MessagePart
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
    read_questions,
    segments_of,
    turns_of,
    with_bos,
)


@register_template("alpaca")
class Alpaca(BaseTemplate):
    """Blocks with ``###`` headers. Raises ConfigError for an unusable prompt pool."""

    @dataclass
    class Config(BaseTemplate.Config):
        """Headers and rules; the defaults are those of Multimodal-GPT."""

        system: str = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        )
        sep: str = "\n\n"  # before every block
        image_header: str = "### Image:\n"  # block of one image; empty: images are in the instruction's block
        image_prefix: str = ""
        image_suffix: str = ""
        image_gap: str = ""  # between an image and the instruction's text, without image blocks
        media_token: str = "<image>"
        user: str = "### Instruction:\n"
        input: str = "### Input:\n"  # block of an Input part
        assistant: str = "### Response:\n"
        joint_answer: bool = True  # training: question and answer are tokenised as one text
        turn_bos: bool = True  # training: every turn has its own begin id
        add_eos: bool = True  # training: the end id after every answer
        image_at_head: bool = False  # an image and its caption: no prompt, the image follows the begin id
        keep_turns: Annotated[int, Range(least=-1)] = -1  # chat: earlier turns kept in the prompt; -1: all
        strip_before: list[str] = field(default_factory=lambda: ["### Response:"])

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Alpaca.Config = config
        self.prompts = read_questions(config.prompt_path) if config.prompt_path else []

    def train_segments(self, sample: Sample, rng: random.Random) -> list[Segment]:
        """See :meth:`BaseTemplate.train_segments`. Questions without an answer are left out."""
        cfg = self.config
        system, turns = answered_turns(sample.messages)
        segments: list[Segment] = []
        for index, (asked, answer) in enumerate(turns):
            pieces = self._condition(asked, rng)
            turn = segments_of([*self._system(system, asked), *pieces] if index == 0 else pieces, cfg.media_token)
            turn.append(self._answer(answer, joined=cfg.joint_answer and bool(turn)))
            segments += with_bos(turn) if index == 0 or cfg.turn_bos else turn
        return segments

    def chat_segments(self, messages: Sequence[Message]) -> list[Segment]:
        """See :meth:`BaseTemplate.chat_segments`: one text, no id between turns."""
        ask_last(messages)
        system, turns = turns_of(messages)
        kept = turns if self.config.keep_turns < 0 else turns[-self.config.keep_turns - 1 :]
        pieces = self._system(system, kept[0][0])
        for asked, answer in kept:
            pieces += self._condition(asked)
            pieces += [UserText(answer.text)] if answer is not None else []
        return with_bos(segments_of(pieces, self.config.media_token))

    def answer_segments(self, text: str) -> list[Segment]:
        """See :meth:`BaseTemplate.answer_segments`."""
        joined = self.config.joint_answer
        return [*([Segment(self.config.assistant)] if joined else []), self._answer(text, joined)]

    def _answer(self, text: str, joined: bool) -> Segment:
        return answer_segment(UserText(text), self.config.end_sym, eos=self.config.add_eos, joined=joined)

    def _system(self, own: str | None, asked: Sequence[Message]) -> list[Piece]:
        """The system sentence; a turn of images only has none but the conversation's own."""
        return [("" if self._is_bare(asked) else self.config.system) if own is None else own]

    def _is_bare(self, asked: Sequence[Message]) -> bool:
        """Whether a turn is images only, without a prompt."""
        media = any(m.media for m in asked)
        return self.config.image_at_head and media and not any(m.text for m in asked)

    def _condition(self, asked: Sequence[Message], rng: random.Random | None = None) -> list[Piece]:
        """What precedes an answer: blocks of images, instruction and input, and the open response."""
        cfg = self.config
        parts = [p for m in asked for p in m.parts]
        if self._is_bare(asked):
            return self._content(parts)
        if self.prompts and rng is not None and parts and not any(m.text for m in asked):
            parts.append(Text(rng.choice(self.prompts)))
        media, content = media_first([p for p in parts if not isinstance(p, Input)])
        pieces: list[Piece] = []
        for medium in media if cfg.image_header else []:
            pieces += [cfg.sep, cfg.image_header, *self._content([medium])]
        pieces += [cfg.sep, cfg.user]
        for medium in [] if cfg.image_header else media:
            pieces += [*self._content([medium]), cfg.image_gap]
        pieces += self._content(content)
        for part in parts:
            pieces += [cfg.sep, cfg.input, UserText(part.text)] if isinstance(part, Input) else []
        return [*pieces, cfg.sep, cfg.assistant]

    def _content(self, parts: Sequence[MessagePart]) -> list[Piece]:
        """Texts and images, each image in its place or at its ``<ImageHere>``, with prefix and suffix."""
        text = UserText("".join(p.text for p in parts if isinstance(p, Text)))
        media = [p for p in parts if not isinstance(p, Text)]
        inline: list[Piece] = [UserText(p.text) if isinstance(p, Text) else p for p in parts]
        pieces: list[Piece] = []
        for piece in at_placeholders(text, media) if IMAGE_PLACEHOLDER in text else inline:
            is_text = isinstance(piece, str)
            pieces += [piece] if is_text else [self.config.image_prefix, piece, self.config.image_suffix]
        return pieces
