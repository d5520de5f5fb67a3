"""The chat template of the tokenizer itself, written in Jinja.

The text of a conversation is what transformers' ``apply_chat_template`` makes of it; it is tokenised as one text, and
the template writes the begin id. Supervised is what the assistant writes after the generation prompt: each answer with
its end. :mod:`~vlm.processors.templates.locating` finds the answers; templates need not say where they are.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import ConfigError, PromptError
from vlm.common.registry import register_template
from vlm.common.text import read_text
from vlm.common.types import Image, Input, Message, Sample, Text
from vlm.processors.templates.base import (
    IMAGE_PLACEHOLDER,
    MEDIUM,
    BaseTemplate,
    Medium,
    Segment,
    ask_last,
    at_placeholders,
    read_lines,
    segments_of,
    with_bos,
)
from vlm.processors.templates.facts import Facts, read_facts, read_form
from vlm.processors.templates.locating import Located, Turn, locate
from vlm.processors.templates.rendering import JinjaTemplate
from vlm.processors.tokenizer.chat_template import DEFAULT, MAX_BYTES, ChatTemplateText, read_chat_template
from vlm.processors.tokenizer.special_tokens import end_ids, token_texts
from vlm.processors.tokenizer.tokenizer import tokenizer_folder

if TYPE_CHECKING:
    from vlm.processors.tokenizer.tokenizer import Tokenizer

log = logging.getLogger(__name__)

PASSED = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Token texts that transformers passes to a template."""
THINKING = ("enable_thinking", "thinking")
"""Switches of published templates."""
AS_TEXT = """
{%- set all = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set own = namespace(text="") -%}
{%- for part in ([{"type": "text", "text": message.content}] if message.content is string else message.content) -%}
{%- set own.text = own.text + (part.text if part.type == "text" else placeholder) -%}
{%- endfor -%}
{%- set all.messages = all.messages + [{"role": message.role, "content": own.text}] -%}
{%- endfor -%}
{%- set messages = all.messages -%}"""
"""Jinja: contents that are lists of parts become texts."""
WORDS_ALONE = JinjaTemplate("{% for message in messages %}{{ message.content }}\n{% endfor %}", "no tokenizer")


@register_template("hf_chat")
class HFChat(BaseTemplate):
    """A Jinja chat template. Raises ConfigError for an unusable prompt pool; see also :meth:`bound`."""

    @dataclass
    class Config(BaseTemplate.Config):
        """Which template, and what it is given."""

        chat_template: str = ""  # Jinja text, a .jinja file, or one of several by name; empty: the tokenizer's own
        system: str = ""  # of conversations without a system text; empty: they have none
        thinking: bool = False  # of templates with such a switch
        variables: dict[str, Any] = field(default_factory=dict)  # what else the template reads, e.g. a date
        image_prefix: str = ""  # around an image, where the template does not place images
        image_suffix: str = ""
        end_sym: str = ""  # after an answer that the template leaves without an end
        begin: bool = False  # the begin id first, where the template does not write it, as many processors do

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: HFChat.Config = config
        self.prompts = read_lines(config.prompt_path) if config.prompt_path else []
        self._begin = ""
        self._told = True
        self._facts = self._facts_of(WORDS_ALONE, re.compile("(?!)"), {}, [])

    @staticmethod
    def is_in(folder: str) -> bool:
        """Whether the tokenizer in a folder, or GGUF file, has a chat template.

        Raises WeightsError: see ``read_chat_template``.
        """
        return read_chat_template(tokenizer_folder(Path(folder).expanduser())) is not None

    def bound(self, tokenizer: Tokenizer) -> HFChat:
        """See :meth:`BaseTemplate.bound`.

        Raises:
            ConfigError: there is no chat template, it fails, does not write the words of a conversation, or writes for
                an image what is not a token of the tokenizer.
            WeightsError: a file of the tokenizer's folder is not what it should be.
        """
        found = self._read(tokenizer.folder)
        texts = {} if tokenizer.folder is None else token_texts(tokenizer.folder)
        for role, index in (("bos_token", tokenizer.bos), ("eos_token", tokenizer.eos)):
            texts |= {} if index is None else {role: tokenizer.piece(index)}
        switches = dict.fromkeys(THINKING, self.config.thinking)
        values = {name: text for name, text in texts.items() if name in PASSED}
        template = JinjaTemplate(found.text, found.file, values | switches | self.config.variables)
        tokens = filter(None, [*tokenizer.controls, self.config.media_token, MEDIUM])
        control = re.compile("|".join(map(re.escape, sorted(set(tokens), key=len, reverse=True))))
        named = {kind: texts.get(f"{kind}_token", "") for kind in ("image", "video")}
        listed = [] if tokenizer.folder is None else end_ids(tokenizer.folder)
        ends = [i for i in dict.fromkeys([tokenizer.eos, *listed]) if i is not None]
        bound = copy.copy(self)
        bound._told = False
        bound._facts = self._facts_of(template, control, named, [tokenizer.piece(i) for i in ends])
        bound._begin = "" if tokenizer.bos is None else texts["bos_token"]
        bound._end(tokenizer, ends)
        return bound

    def _facts_of(
        self, template: JinjaTemplate, control: re.Pattern[str], named: dict[str, str], ends: list[str]
    ) -> Facts:
        around = self.config.image_prefix, self.config.image_suffix
        form = read_form(template, control, self.config.media_token, named, around)
        return read_facts(form, control, ends)

    def _read(self, folder: Path | None) -> ChatTemplateText:
        """The Jinja text that the configuration or the folder names."""
        own = self.config.chat_template
        if "{" in own or "\n" in own:
            return ChatTemplateText(own, "model.template.chat_template")
        if own.endswith(".jinja") or Path(own).expanduser().is_file():
            text = read_text(Path(own).expanduser(), "model.template.chat_template", ConfigError, MAX_BYTES)
            return ChatTemplateText(text, own)
        found = None if folder is None else read_chat_template(folder, own or DEFAULT)
        if found is None:
            raise ConfigError(
                f"model.template: the tokenizer in {folder} has no chat template",
                fix="set model.template.chat_template to a Jinja text or .jinja file, or another template (plain)",
            )
        return found

    def _end(self, tokenizer: Tokenizer, ends: list[int]) -> None:
        """Set what ends an answer, and the token of a medium."""
        self.end = self.config.end_sym or self._facts.end
        known = tokenizer.id_of(self.end) if self.end in tokenizer.controls else None
        self.end_ids = tuple(dict.fromkeys([*([] if known is None else [known]), *ends]))
        texts = [self.end] if self.end and known is None else []
        self.stop = [*texts, *self.config.stop]
        shown = [*texts, *(tokenizer.piece(i) for i in self.end_ids if tokenizer.decode([i]))]
        token = self._tokens[0] if self._tokens != [MEDIUM] else ""
        self.config = replace(self.config, media_token=token, truncate_at=[*self.config.truncate_at, *shown])

    @property
    def _tokens(self) -> list[str]:
        """What the text has where an image or a video is."""
        return list(dict.fromkeys(self._facts.form.tokens.values()))

    def train_segments(self, sample: Sample, rng: random.Random) -> list[Segment]:
        """See :meth:`BaseTemplate.train_segments`. Questions after the last answer are left out."""
        answered = [k for k, m in enumerate(sample.messages) if m.role == "assistant"]
        messages = sample.messages[: answered[-1] + 1] if answered else sample.messages
        turns = self._turns(messages, rng)
        located = locate(turns, self._facts.form.render, self._facts.control, answers=True)
        return self._begun(located, self._segments(located, turns, supervised=True))

    def chat_segments(self, messages: Sequence[Message]) -> list[Segment]:
        """See :meth:`BaseTemplate.chat_segments`."""
        ask_last(messages)
        turns = self._turns(messages)

        def render(turns: Sequence[Turn]) -> str:
            return self._facts.form.render(turns, open_turn=True)

        located = locate(turns, render, self._facts.control, answers=bool(self.config.end_sym))
        return self._begun(located, self._segments(located, turns, supervised=False))

    def _begun(self, located: Located, segments: list[Segment]) -> list[Segment]:
        own = bool(self._begin) and located.text.startswith(self._begin)
        return with_bos(segments) if self.config.begin and not own else segments

    def answer_segments(self, text: str) -> list[Segment]:
        """See :meth:`BaseTemplate.answer_segments`."""
        return self.train_segments(Sample((Message("user", "?"), Message("assistant", text))), random.Random(0))

    def prompt_segments(self, text: str, media: Sequence[Medium]) -> list[Segment]:
        """See :meth:`BaseTemplate.prompt_segments`; the begin id is not added to a text that has it."""
        token = self.config.media_token
        pieces = at_placeholders(text.replace(token, IMAGE_PLACEHOLDER) if token else text, media)
        segments = [replace(s, joined=k > 0) for k, s in enumerate(segments_of(pieces, token))]
        return segments if self._begin and text.startswith(self._begin) else with_bos(segments)

    def jinja(self, image: str) -> str | None:
        """The chat template with its options in it, see ``WritesJinja``; None with ``end_sym``."""
        cfg, form = self.config, self._facts.form
        if cfg.end_sym:
            return None
        values = {**dict.fromkeys(THINKING, cfg.thinking), **cfg.variables}
        if not form.lists:
            values["placeholder"] = cfg.image_prefix + image + cfg.image_suffix
        head = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in values.items())
        if cfg.system:
            content = [{"type": "text", "text": cfg.system}] if "system" in form.lists else cfg.system
            first = json.dumps([{"role": "system", "content": content}])
            head += f'{{%- set messages = ([] if messages[0].role == "system" else {first}) + messages -%}}\n'
        head += "" if form.lists else AS_TEXT
        begins = cfg.begin and not form.render([Turn("user", ("?",))]).startswith(self._begin)
        head += "{{- bos_token }}" if begins else "{{- '' }}"  # white space after it belongs to the template
        token = self._tokens[0]
        return head + (form.template.text.replace(token, image) if form.lists else form.template.text)

    def _turns(self, messages: Sequence[Message], rng: random.Random | None = None) -> list[Turn]:
        """The messages for the template; in training an image without any words gets a prompt of the pool."""
        asked = [m for m in messages if m.role == "user"]
        pool = self.prompts if rng is not None and not any(m.text for m in asked) else []
        turns = [Turn("system", (self.config.system,))] if self.config.system else []
        turns = turns if not any(m.role == "system" for m in messages) else []
        for message in messages:
            parts = message.parts
            if pool and rng is not None and message.media:
                parts = (*parts, Text(rng.choice(pool)))
            if parts and (message.role != "system" or message.text):
                turns.append(Turn(message.role, tuple(_pieces(parts))))
        return turns

    def _segments(self, located: Located, turns: Sequence[Turn], supervised: bool) -> list[Segment]:
        """The text cut at media and answers, to be tokenised as one."""
        text = located.text
        places: list[tuple[int, int, Medium | None, str]] = []  # start, end, medium or answer, text after an answer
        for start, end, over in self._answers(located):
            self._tell(supervised and not over)
            places.append((start, end, None, "" if over else self.config.end_sym))
        places += [(a, b, medium, "") for a, b, medium in self._media(located, turns)]
        segments: list[Segment] = []
        at = 0
        for start, end, medium, after in [*sorted(places, key=lambda place: place[:2]), (len(text), 0, None, "")]:
            if start > at:
                segments.append(_cut(located, at, start))
            if medium is not None:
                token = self._facts.form.tokens[type(medium)]
                segments.append(Segment("" if token == MEDIUM else token, medium))
            elif end:
                answer = _cut(located, start, end)
                segments.append(replace(answer, text=answer.text + after, supervised=supervised))
            at = end
        return [replace(segment, joined=k > 0) for k, segment in enumerate(segments)]

    def _answers(self, located: Located) -> list[tuple[int, int, bool]]:
        """What the assistant writes, from the generation prompt to the end, and whether there is an end."""
        text, facts = located.text, self._facts
        size = len(facts.opening)
        answers: list[tuple[int, int, bool]] = []
        at = 0
        for start, end in located.answers:
            opened = text.rfind(facts.opening, at, start)
            if opened >= 0 and not any(a < opened + size and opened < b for a, b in located.literal):
                start = opened + size
            over = facts.ends.match(text, end)
            at = over.end() if over else end
            answers.append((start, at, over is not None))
        return answers

    def _media(self, located: Located, turns: Sequence[Turn]) -> list[tuple[int, int, Medium]]:
        """The places of the media: the tokens that are not somebody's words."""
        given = [p for turn in turns for p in turn.pieces if not isinstance(p, str)]
        tokens = self._facts.form.tokens
        places: list[tuple[int, int, Medium]] = []
        for token in self._tokens:
            times = self._facts.form.repeat if token == tokens[Image] else 1
            runs = re.finditer(f"(?:{re.escape(token)}){{{times}}}", located.text)
            spans = [m.span() for m in runs]
            found = [(a, b) for a, b in spans if not any(a < end and start < b for start, end in located.literal)]
            own = [medium for medium in given if tokens[type(medium)] == token]
            if len(found) != len(own):
                name = "" if token == MEDIUM else f" {token}"
                raise PromptError(
                    f"the chat template ({self._facts.form.template.name}) writes {len(found)} placeholders{name} "
                    f"for {len(own)} images or videos",
                    fix="put the images into the user's messages, or set model.template.media_token",
                )
            places += [(a, b, medium) for (a, b), medium in zip(found, own, strict=True)]
        return places

    def _tell(self, endless: bool) -> None:
        """Warn once about answers without an end."""
        if endless and not self.config.end_sym and not self._told:
            self._told = True
            log.warning(
                "the chat template (%s) writes no end after an answer, so that training does not teach one; "
                "set model.template.end_sym, e.g. to the end token",
                self._facts.form.template.name,
            )


def _pieces(parts: Sequence[Any]) -> list[str | Medium]:
    """Texts and media of a message, neighbouring texts joined; media at the placeholders in the words, if any."""
    text = "".join(p.text for p in parts if isinstance(p, Text))
    if IMAGE_PLACEHOLDER in text:
        placed = at_placeholders(text, [p for p in parts if not isinstance(p, Text)])
        return [p for p in placed if p != ""]
    pieces: list[str | Medium] = []
    for part in parts:
        if not isinstance(part, Text):
            pieces.append(part)
            continue
        own = ("\n" if isinstance(part, Input) and pieces else "") + part.text
        if pieces and isinstance(pieces[-1], str):
            pieces[-1] += own
        elif own or len(parts) == 1:
            pieces.append(own)
    return pieces


def _cut(located: Located, start: int, end: int) -> Segment:
    """The stretch of a text, with what is literal in it."""
    inside = [(max(a, start) - start, min(b, end) - start) for a, b in located.literal if a < end and start < b]
    return Segment(located.text[start:end], literal=tuple(inside))
