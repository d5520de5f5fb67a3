"""``User: ... Bot: ...`` on separate lines, the format of Lynx: no system text, images before everything.

The visual tokens come before the begin id. Everything is lower-cased. Question and answer are tokenised as one
text; an answer follows the colon and one space, and ends with the end id. As in the repository bytedance/lynx-llm.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from vlm.common.errors import ConfigError
from vlm.common.registry import register_template
from vlm.common.types import Message, Sample
from vlm.processors.templates.base import (
    IMAGE_PLACEHOLDER,
    BaseTemplate,
    Medium,
    Piece,
    Segment,
    UserText,
    answer_segment,
    answered_turns,
    ask_last,
    at_placeholders,
    read_questions,
    segments_of,
    turns_of,
    with_bos,
)


@register_template("user_bot")
class UserBot(BaseTemplate):
    """Questions and answers as lines. Raises ConfigError for an unusable ``prompt_template``."""

    @dataclass
    class Config(BaseTemplate.Config):
        """Texts and rules; the defaults are those of Lynx."""

        prompt_template: str = "User: {}\nBot:"  # around a question; the published {question} is read too
        answer_prefix: str = " "  # between prompt and answer
        sep: str = "\n"  # between turns
        lower_text: bool = True  # everything is lower-cased before tokenising
        add_eos: bool = True  # training: the end id after every answer

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: UserBot.Config = config
        halves = config.prompt_template.strip().replace("{question}", "{}").split("{}")
        if len(halves) != 2:
            raise ConfigError(
                f"template.prompt_template {config.prompt_template!r} needs exactly one {{}}",
                fix="write {} where the question goes, e.g. 'User: {}\\nBot:'",
            )
        self._around = tuple(map(self._cased, halves))
        self.prompts = read_questions(config.prompt_path) if config.prompt_path else []

    def train_segments(self, sample: Sample, rng: random.Random) -> list[Segment]:
        """See :meth:`BaseTemplate.train_segments`. Questions without an answer are left out."""
        system, turns = answered_turns(sample.messages)
        segments: list[Segment] = []
        for index, (asked, answer) in enumerate(turns):
            segments += segments_of([*self._before(system, index), *self._question(asked, rng)])
            segments.append(self._answer(answer))
        return self._after_media([m for asked, _ in turns for m in asked], segments)

    def chat_segments(self, messages: Sequence[Message]) -> list[Segment]:
        """See :meth:`BaseTemplate.chat_segments`: one text, no id between turns."""
        ask_last(messages)
        system, turns = turns_of(messages)
        pieces: list[Piece] = []
        for index, (asked, answer) in enumerate(turns):
            pieces += [*self._before(system, index), *self._question(asked)]
            pieces += [] if answer is None else [self.config.answer_prefix, self._cased(UserText(answer.text))]
        return self._after_media(messages, segments_of(pieces))

    def prompt_segments(self, text: str, media: Sequence[Medium]) -> list[Segment]:
        """See :meth:`BaseTemplate.prompt_segments`; placeholders are optional, media come first anyway."""
        pieces = at_placeholders(text, media) if IMAGE_PLACEHOLDER in text else [text]
        declared = [self._cased(p) for p in pieces if isinstance(p, str)]
        return [*(Segment(self.config.media_token, m) for m in media), *with_bos(segments_of(declared))]

    def answer_segments(self, text: str) -> list[Segment]:
        """See :meth:`BaseTemplate.answer_segments`."""
        return [Segment(self._around[1]), self._answer(text)]

    def _answer(self, text: str) -> Segment:
        pieces = (self.config.answer_prefix, self._cased(UserText(text)), self.config.end_sym)
        return answer_segment(*pieces, eos=self.config.add_eos, joined=True)

    def _before(self, system: str | None, index: int) -> list[Piece]:
        """What separates the turns, and the conversation's own system text."""
        own = [self._cased(system)] if system and not index else []
        return [*own, self.config.sep] if own or index else []

    def _question(self, asked: Sequence[Message], rng: random.Random | None = None) -> list[Piece]:
        """A question with the prompt around it; in training a caption's image gets one of the pool."""
        text = UserText("".join(m.text for m in asked))
        if rng is not None and self.prompts and not text.strip():
            text = UserText(rng.choice(self.prompts))
        if IMAGE_PLACEHOLDER in text:
            media = [medium for m in asked for medium in m.media]
            text = UserText("".join(p for p in at_placeholders(text, media) if isinstance(p, str)))
        return [self._around[0], self._cased(text), self._around[1]]

    def _after_media(self, messages: Sequence[Message], segments: list[Segment]) -> list[Segment]:
        """All images and videos of the conversation, then begin id and text."""
        media = [medium for m in messages if m.role == "user" for medium in m.media]
        return [*(Segment(self.config.media_token, medium) for medium in media), *with_bos(segments)]

    def _cased(self, text: str) -> str:
        return type(text)(text.lower()) if self.config.lower_text else text
