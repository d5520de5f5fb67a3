"""What all templates share: segments, pieces of text and media, clean-up of answers.

The words of a conversation are :class:`UserText`, those of a template plain ``str``. Special tokens are recognised
only in the latter, so that a question about ``<s>`` or ``<img>`` stays a question.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from vlm.common import text
from vlm.common.errors import ConfigError, PromptError
from vlm.common.types import Image, Message, Part, Sample, Text, Video

if TYPE_CHECKING:
    from vlm.processors.tokenizer.tokenizer import Tokenizer

IMAGE_PLACEHOLDER = "<ImageHere>"
"""The place of an image or video in prompt pools and raw prompts."""

MEDIUM = "\U0010fffd"
"""A private letter: the place of an image or video in a text that the tokenizer reads as a whole, if no token is."""

Medium = Image | Video


class UserText(str):
    """A text from a conversation: special tokens in it stay literal."""


Piece = str | Medium
Turns = list[tuple[list[Message], Message | None]]


@dataclass(frozen=True)
class Segment:
    """A stretch that is tokenised on its own: ``text``, or one ``medium``.

    text        text; of a medium the special token that represents it, if any
    medium      an image or video, which may then be joined
    supervised  its tokens are targets
    bos, eos    the begin id precedes it, the end id follows it
    joined      it continues the previous segment: both are tokenised as one text
    literal     stretches ``[start, end)`` of ``text`` in which special tokens are not recognised
    question    of a medium: what is asked about it, if a bridge reads that; the processor fills it in
    """

    text: str = ""
    medium: Medium | None = None
    supervised: bool = False
    bos: bool = False
    eos: bool = False
    joined: bool = False
    literal: tuple[tuple[int, int], ...] = ()
    question: str = ""


class BaseTemplate(ABC):
    """Conversation -> segments, and the rules for answers.

    Attributes:
        task_texts: beginnings of questions that models of this template were trained on, offered by the chat page.
        stop: texts that end an answer.
        end: the text after an answer in training.
    """

    task_texts: ClassVar[tuple[str, ...]] = ()

    @dataclass
    class Config:
        """Ends and clean-up of answers."""

        end_sym: str = ""  # training: text after every answer
        media_token: str = ""  # special token, with an embedding of its own, that represents a medium; empty: none
        prompt_path: str = ""  # pool of prompts for samples of an image and a caption
        stop: list[str] = field(default_factory=list)  # texts that end an answer, besides the end id
        truncate_at: list[str] = field(default_factory=list)  # clean-up: keep the text before the first of these
        strip_before: list[str] = field(default_factory=list)  # and after the last of these
        strip: bool = True  # and remove the white space around it

    def __init__(self, config: Any) -> None:
        self.config = config
        self.stop = list(config.stop)
        self.end: str = config.end_sym

    def bound(self, tokenizer: Tokenizer) -> BaseTemplate:
        """The template for one tokenizer: itself, unless it reads something there.

        Raises ConfigError, WeightsError: what it needs is not there.
        """
        return self

    @abstractmethod
    def train_segments(self, sample: Sample, rng: random.Random) -> list[Segment]:
        """Segments of a training sample; ``rng`` draws the prompt of a caption sample.

        Raises PromptError: placeholders and media of a turn differ in number.
        """

    @abstractmethod
    def chat_segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Segments of a chat prompt with the assistant's turn left open.

        Raises PromptError: no message, the last one is not the user's, or placeholders and media differ in number.
        """

    def answer_segments(self, text: str) -> list[Segment]:
        """Segments of an answer in training, after the unsupervised text that it is joined to, if any."""
        return [answer_segment(UserText(text), self.config.end_sym)]

    def prompt_segments(self, text: str, media: Sequence[Medium]) -> list[Segment]:
        """Segments of a finished prompt text with one ``<ImageHere>`` (or media token) per medium, nothing added.

        Raises PromptError: placeholders and media differ in number.
        """
        token = self.config.media_token
        marked = text.replace(token, IMAGE_PLACEHOLDER) if token else text
        return with_bos(segments_of(at_placeholders(marked, media), token))

    def clean(self, text: str) -> str:
        """The answer in a chat output: text before any ``truncate_at``, after the last ``strip_before``, stripped."""
        for end in self.config.truncate_at:
            text = text.split(end)[0]
        for start in self.config.strip_before:
            text = text.split(start)[-1]
        return text.strip() if self.config.strip else text

    @staticmethod
    def clean_batch(text: str) -> str:
        """The answer in a batch output (the published ``generate``): up to ``</s>``, after ``[/INST]``, stripped."""
        return text.split("</s>")[0].replace("<s>", "").split("[/INST]")[-1].strip()


@runtime_checkable
class EndsByIds(Protocol):
    """A template that knows tokens which end an answer, besides the tokenizer's end id; without it: none."""

    end_ids: tuple[int, ...]


@runtime_checkable
class WritesJinja(Protocol):
    """A template that can also be written as the Jinja text of a tokenizer's chat template."""

    def jinja(self, image: str) -> str | None:
        """The text, with ``image`` in place of each image; None if these options have no such form.

        It gives the text of :meth:`BaseTemplate.chat_segments`, begin token included.
        """


def ask_last(messages: Sequence[Message]) -> None:
    """Raise PromptError unless the last message is the user's."""
    if not messages or messages[-1].role != "user":
        raise PromptError("a chat prompt must end with a user message", fix="append the user's question")


def turns_of(messages: Sequence[Message]) -> tuple[str | None, Turns]:
    """System text and (user messages, answer) pairs; the answer of a trailing question is None."""
    system: str | None = None
    turns: Turns = []
    asked: list[Message] = []
    for message in messages:
        if message.role == "system":
            system = UserText(message.text)
        elif message.role == "user":
            asked.append(message)
        else:
            turns.append((asked, message))
            asked = []
    return system, turns + ([(asked, None)] if asked else [])


def at_placeholders(text: str, media: Sequence[Medium]) -> list[Piece]:
    """``text`` with the k-th ``<ImageHere>`` replaced by the k-th medium; its pieces are of the class of ``text``."""
    kind = type(text)
    texts = text.split(IMAGE_PLACEHOLDER)
    if len(texts) - 1 != len(media):
        short = text if len(text) <= 120 else f"{text[:117]}..."
        raise PromptError(
            f"the prompt has {len(texts) - 1} image placeholders but {len(media)} media were given: {short!r}",
            fix=f"write {IMAGE_PLACEHOLDER} exactly once for every image or video",
        )
    pieces: list[Piece] = [kind(texts[0])]
    for medium, following in zip(media, texts[1:], strict=True):
        pieces += [medium, kind(following)]
    return pieces


def media_first(parts: Sequence[Part]) -> tuple[list[Medium], list[Part]]:
    """Media that go first, and the rest in order; media between texts, or with a placeholder, keep their place."""
    kinds = [not isinstance(p, Text) for p in parts if not isinstance(p, Text) or p.text]
    texts = [i for i, is_medium in enumerate(kinds) if not is_medium]
    between = bool(texts) and any(kinds[texts[0] : texts[-1]])
    if between or any(isinstance(p, Text) and IMAGE_PLACEHOLDER in p.text for p in parts):
        return [], list(parts)
    return [p for p in parts if not isinstance(p, Text)], [p for p in parts if isinstance(p, Text)]


def segments_of(pieces: Sequence[Piece], media_token: str = "") -> list[Segment]:
    """Segments with neighbouring texts joined and empty texts dropped.

    Media represented by ``media_token`` are tokenised together with the text around them.
    """
    out: list[Segment] = []
    texts: list[str] = []
    for piece in [*pieces, None]:
        if isinstance(piece, str):
            texts.append(piece)
            continue
        if text := "".join(texts):
            out.append(Segment(text=text, literal=literal_stretches(texts)))
        if piece is not None:
            out.append(Segment(text=media_token, medium=piece))
        texts = []
    return [replace(s, joined=bool(media_token) and i > 0) for i, s in enumerate(out)]


def answer_segment(*pieces: str, eos: bool = False, joined: bool = False) -> Segment:
    """The supervised segment of an answer."""
    return Segment("".join(pieces), supervised=True, eos=eos, joined=joined, literal=literal_stretches(pieces))


def without_end(segments: Sequence[Segment]) -> list[Segment]:
    """The segments up to where the words of the answer end, without the end that the template adds."""
    last = max((k for k, s in enumerate(segments) if s.supervised and s.literal), default=-1)
    if last < 0:
        return list(segments)
    words = segments[last]
    return [*segments[:last], replace(words, text=words.text[: words.literal[-1][1]], eos=False)]


def answered_turns(messages: Sequence[Message]) -> tuple[str | None, list[tuple[list[Message], str]]]:
    """System text, and (user messages, text of the answer) of the turns that have an answer."""
    system, turns = turns_of(messages)
    return system, [(asked, answer.text) for asked, answer in turns if answer is not None]


def literal_stretches(pieces: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Stretches ``[start, end)`` of the :class:`UserText` pieces in the joined text."""
    ends = list(accumulate(map(len, pieces)))
    return tuple((end - len(p), end) for p, end in zip(pieces, ends) if isinstance(p, UserText) and p)


def with_bos(segments: list[Segment]) -> list[Segment]:
    """The segments with the begin id before the first; without segments, the begin id alone."""
    first = segments[0] if segments else Segment()
    return [replace(first, bos=True), *segments[1:]]


def read_lines(path: str) -> list[str]:
    """Lines of a pool of prompts that are not blank. Raises ConfigError when there is no such file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"template.prompt_path: no file {path}", fix="name a text file, one prompt per line")
    return text.read_lines(file, "template.prompt_path", ConfigError)


def read_questions(path: str) -> list[str]:
    """Lines of a pool of prompts without placeholders (the template places the image).

    Raises ConfigError: no such file, no line, or a line with a placeholder.
    """
    lines = read_lines(path)
    if not lines or any(IMAGE_PLACEHOLDER in line for line in lines):
        result = f"a line with {IMAGE_PLACEHOLDER}" if lines else "no line"
        raise ConfigError(f"template.prompt_path: {path} has {result}", fix="write questions only, one per line")
    return lines
