"""Templates with roles: the text around questions and answers, as data.

A template has two forms, because the published code has two:

* the training form (``train_segments``): condition and answers are separate segments, each
  tokenised on its own; only answers are supervised;
* the chat form (``chat_segments``): the whole dialogue is one text, split at images only.

With ``chat_form: true`` training uses the chat text, and chat is split where training splits it, so
that both give the same ids. Presets differ only in the defaults of ``Config``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from vlm.common.errors import ConfigError
from vlm.common.registry import register_template
from vlm.common.types import Input, Message, Sample, Text
from vlm.common.types import Part as MessagePart
from vlm.processors.templates.base import (
    IMAGE_PLACEHOLDER,
    BaseTemplate,
    Medium,
    Piece,
    Segment,
    UserText,
    ask_last,
    at_placeholders,
    read_lines,
    segments_of,
    turns_of,
    with_bos,
)

CHAT = """\
{%- macro words(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content if part.type == "text" -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- set after = namespace(image=false) -%}
{%- for part in content -%}
{%- if part.type == "text" -%}
{%- if after.image and part.text[:1].strip() -%}{{ gap }}{%- endif -%}{{ part.text }}
{%- set after.image = false -%}
{%- else -%}{{ image }}{%- set after.image = true -%}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- if messages[0].role == "system" -%}{%- set own = words(messages[0].content) -%}
{%- set own = role + own if own else "" -%}{%- else -%}{%- set own = system -%}{%- endif -%}
{{ own }}{%- if own or not bare -%}{{ sep }}{%- endif -%}
{%- for message in messages if message.role != "system" -%}
{%- if message.role == "user" -%}{{ user }}{{ parts(message.content) }}{{ sep }}
{%- else -%}{{ answer }}{{ words(message.content) }}{{ sep }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ open }}{%- endif -%}
"""
"""Chat template in Jinja over the texts of a :class:`Template`."""

__all__ = ["IMAGE_PLACEHOLDER", "BaseTemplate", "Medium", "Segment"]


class Template(BaseTemplate):
    """Base of all templates; a subclass only changes defaults. Raises ConfigError for an unusable prompt pool."""

    @dataclass
    class Config(BaseTemplate.Config):
        """Texts around the parts of a conversation."""

        system: str = ""  # chat only (and training with chat_form)
        user: str = ""  # role text before a question, with its punctuation
        assistant: str = ""  # role text before an answer
        sep: str = ""  # between chat turns
        prompt_template: str = "{}"  # training: around a question
        chat_template: bool = True  # training: apply prompt_template (published option of v2)
        end_sym: str = "\n"  # training: after every answer
        image_prefix: str = "<Img>"
        image_suffix: str = "</Img>"
        image_gap: str = " "  # between an image and a text after it that does not begin with white space
        system_role: str = ""  # before the conversation's own system text, e.g. "System: "
        bare_start: bool = False  # without a system text the first turn comes first, with no sep before it
        question_suffix: str = ""  # training: after a question of a sample with images
        turn_start: str | None = None  # training: before a later question in prompt_template; None: chat form
        style: Literal["2024", "2023-04"] = "2024"  # 2023-04: no space after the open turn
        chat_form: bool = False  # training uses the chat text
        stop: list[str] = field(default_factory=lambda: ["</s>"])
        truncate_at: list[str] = field(default_factory=lambda: ["###"])  # clean-up: see the base class
        strip_before: list[str] = field(default_factory=lambda: ["Assistant:"])

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.prompt_template.count("{}") != 1:
            fix = "write {} where the question goes, e.g. '###Human: {} ###Assistant: '"
            raise ConfigError(f"template.prompt_template {config.prompt_template!r} needs exactly one {{}}", fix=fix)
        self.prompts = _read_pool(config.prompt_path) if config.prompt_path else []

    def train_segments(self, sample: Sample, rng: random.Random) -> list[Segment]:
        """See :meth:`BaseTemplate.train_segments`."""
        system, turns = turns_of(sample.messages)
        turns = [turn for turn in turns if turn[1] is not None] or turns
        has_media = any(m.media for m in sample.messages)
        dialogue = system is not None or any(m.text for asked, _ in turns for m in asked)
        segments: list[Segment] = []
        for index, (asked, answer) in enumerate(turns):
            pieces = self._question(asked, index, has_media) if dialogue else self._caption(asked, rng)
            if index == 0 and dialogue:
                pieces = [*(self._system(system) if self.config.chat_form else self._role(system)), *pieces]
            segments += segments_of(pieces, self.config.media_token)
            if answer is not None:
                segments += self.answer_segments(answer.text)
        return with_bos(segments)

    def chat_segments(self, messages: Sequence[Message]) -> list[Segment]:
        """See :meth:`BaseTemplate.chat_segments`."""
        ask_last(messages)
        own = UserText(messages[0].text) if messages[0].role == "system" else None
        rest = [m for m in messages if m.role != "system"]
        blocks = [self._system(own)]
        for message in rest:
            if message.role == "user":
                blocks[-1] += self._chat_question(message)
            elif self.config.chat_form:
                blocks[-1].append(self.open_turn)
                blocks += [[UserText(message.text), self.config.sep], []]
            else:
                blocks[-1] += [self.config.assistant, UserText(message.text), self.config.sep]
        blocks[-1].append(self.open_turn)
        return with_bos([s for block in blocks for s in segments_of(block, self.config.media_token)])

    def jinja(self, image: str) -> str:
        """The text of :meth:`chat_segments` as a chat template in Jinja, see :class:`WritesJinja`."""
        cfg = self.config
        values = {
            "system": cfg.system,
            "sep": cfg.sep,
            "user": cfg.user,
            "assistant": cfg.assistant,
            "open": self.open_turn,
            "answer": self.open_turn if cfg.chat_form else cfg.assistant,
            "image": f"{cfg.image_prefix}{image}{cfg.image_suffix}",
            "gap": cfg.image_gap,
            "role": cfg.system_role,
            "bare": cfg.bare_start,
        }
        return "".join(f"{{%- set {name} = {json.dumps(text)} -%}}\n" for name, text in values.items()) + CHAT

    @property
    def open_turn(self) -> str:
        """The role text after which the assistant begins to write."""
        return self.config.assistant.rstrip(" ") if self.config.style == "2023-04" else self.config.assistant

    def _system(self, own: str | None) -> list[Piece]:
        text = [self.config.system] if own is None else self._role(own)
        return [] if self.config.bare_start and not any(text) else [*text, self.config.sep]

    def _role(self, own: str | None) -> list[Piece]:
        """The system text of a conversation, with its role."""
        return [self.config.system_role, own] if own else []

    def _chat_question(self, message: Message) -> list[Piece]:
        return [self.config.user, *self._content(message.parts), self.config.sep]

    def _question(self, asked: list[Message], index: int, has_media: bool) -> list[Piece]:
        """What precedes answer ``index`` in the training form."""
        cfg = self.config
        parts = [p for m in asked for p in m.parts]
        if cfg.chat_form or (index and cfg.turn_start is None):
            return [p for m in asked for p in self._chat_question(m)] + [self.open_turn]
        content = [*self._content(parts), cfg.question_suffix if has_media else ""]
        pieces = _wrap(cfg.prompt_template, content) if cfg.chat_template else content
        return [cfg.turn_start or "", *pieces] if index else pieces

    def _caption(self, asked: list[Message], rng: random.Random) -> list[Piece]:
        """What precedes the caption of a sample without any words of a user or system: images, or a prompt of the pool.

        It has neither system text nor roles, as published.
        """
        media = [medium for m in asked for medium in m.media]
        if not media or not self.prompts:
            return list(media)
        return _wrap(self.config.prompt_template, at_placeholders(rng.choice(self.prompts), media))

    def _content(self, parts: Sequence[MessagePart]) -> list[Piece]:
        """Text and media of a turn: images with prefix and suffix, ``image_gap`` before text without leading space."""
        text = UserText("".join(p.text for p in parts if isinstance(p, Text)))
        media = [p for p in parts if not isinstance(p, Text)]
        if IMAGE_PLACEHOLDER in text:
            return at_placeholders(text, media)
        pieces: list[Piece] = []
        after_medium = False
        for part in parts:
            if isinstance(part, Text):
                gap = self.config.image_gap if after_medium and part.text[:1].strip() else ""
                gap = "\n" if isinstance(part, Input) and pieces else gap
                pieces += [gap, UserText(part.text)]
            else:
                pieces += [self.config.image_prefix, part, self.config.image_suffix]
            after_medium = not isinstance(part, Text)
        return pieces


@register_template("plain")
class Plain(Template):
    """No prompt at all: images, then the text, as in a first training stage."""

    @dataclass
    class Config(Template.Config):
        """Images and texts alone; an answer ends with a newline."""

        image_prefix: str = ""
        image_suffix: str = ""
        turn_start: str | None = ""


def _read_pool(path: str) -> list[str]:
    """Lines of a prompt file that contain ``<ImageHere>``."""
    lines = [line for line in read_lines(path) if IMAGE_PLACEHOLDER in line]
    if not lines:
        fix = f"write lines such as '<Img>{IMAGE_PLACEHOLDER}</Img> Describe this image in detail.'"
        raise ConfigError(f"template.prompt_path: {path} has no line with {IMAGE_PLACEHOLDER}", fix=fix)
    return lines


def _wrap(template: str, pieces: list[Piece]) -> list[Piece]:
    before, _, after = template.partition("{}")
    return [before, *pieces, after]
