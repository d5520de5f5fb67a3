"""The question about each image and video, for a bridge that reads it (``model.bridge.<i>.reads_text``).

It is what the user says in the turn that shows the medium, without placeholders; of a finished prompt all its words.
Where nobody says anything (an image and its caption), it is the prompt that the template wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from vlm.common.errors import ConfigError
from vlm.common.types import Message
from vlm.models.protocols import ReadsText
from vlm.processors.templates.base import IMAGE_PLACEHOLDER, Medium, Segment, turns_of
from vlm.processors.tokenizer.question import QuestionTokenizer

if TYPE_CHECKING:
    from vlm.config.api import ModelConfig


def asked_in(messages: Sequence[Message]) -> list[tuple[Medium, str]]:
    """Every medium of a conversation, in order, with the words of its turn."""
    return [
        (medium, "".join(message.text for message in asked))
        for asked, _ in turns_of(messages)[1]
        for message in asked
        for medium in message.media
    ]


def with_questions(
    segments: Sequence[Segment], asked: Sequence[tuple[Medium, str]], media_token: str = ""
) -> list[Segment]:
    """The segments, each medium with the question about it.

    Args:
        segments: what a template made.
        asked: the media that it was given, each with the words about it. It may have left some out.
        media_token: special token of a medium, left out of a question as placeholders are.

    Raises:
        ConfigError: the template replaced a medium by another object.
    """
    prompt = "".join(s.text for s in takewhile(lambda s: not s.supervised, segments) if s.medium is None)
    left, result = list(asked), []
    for segment in segments:
        if segment.medium is not None:
            place = next((i for i, (medium, _) in enumerate(left) if medium is segment.medium), None)
            if place is None:
                raise ConfigError("model.template: it replaces an image by another object, whose question is not known")
            text = left[place][1]
            del left[place]
            for token in filter(None, (IMAGE_PLACEHOLDER, media_token)):
                text, prompt = text.replace(token, ""), prompt.replace(token, "")
            segment = replace(segment, question=text.strip() or prompt.strip())
        result.append(segment)
    return result


def question_tokenizer(model_cfg: ModelConfig) -> QuestionTokenizer | None:
    """The tokenizer of the bridge that reads the question; None: there is no such bridge.

    Raises:
        ConfigError: no tokenizer is named, it has more tokens than the bridge, or there are two such bridges.
        WeightsError: see :class:`QuestionTokenizer`.
    """
    found = [
        (f"model.bridge.{i}.reads_text", part.config.reads_text)
        for i, part in enumerate(model_cfg.bridge)
        if isinstance(part.config, ReadsText) and part.config.reads_text is not None
    ]
    if not found:
        return None
    if len(found) > 1:
        raise ConfigError(f"{' and '.join(name for name, _ in found)}: only one bridge can read the question")
    name, options = found[0]
    if not options.tokenizer:
        raise ConfigError(f"{name}.tokenizer is not set", fix="name a folder with the bridge's tokenizer.json")
    tokenizer = QuestionTokenizer(options.tokenizer, options.limit)
    if tokenizer.vocab_size > options.vocab_size:
        raise ConfigError(
            f"{name}.vocab_size is {options.vocab_size}, but its tokenizer has {tokenizer.vocab_size} tokens",
            fix="use the tokenizer of the same model",
        )
    return tokenizer
