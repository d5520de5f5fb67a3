"""Sample -> Example: the one place where template, tokenizer and image recipe meet.

Training, chat, HTTP and evaluation all go through here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError
from vlm.common.registry import resolve
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example, Image, Message, Sample, Video
from vlm.processors.image import ImageRecipe
from vlm.processors.template import Segment, Template
from vlm.processors.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from vlm.common.config import ModelConfig


@dataclass
class TextConfig:
    """Limits of the text side, by their published names."""

    max_txt_len: int = 32  # tokens from the first answer on; the rest is cut
    max_context_len: int = 3800  # positions before the first answer
    keep_end: bool = False  # a cut answer still ends with end_sym (the published code loses it)
    tokens_per_medium: int = 1  # what a picture counts in max_context_len
    pad_token: str = "$$"  # existing piece used for padding


Span = tuple[list[int], bool]
"""Ids of a segment, and whether they are targets."""


class Processor:
    """Template, tokenizer and picture recipe of one model; pickles into loader workers."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        image: ImageRecipe,
        text_cfg: TextConfig | None = None,
        video: Callable[[Any, str], torch.Tensor] | None = None,
    ) -> None:
        """``video`` maps (source, name) to ``[f, 3, h, w]``."""
        self.tokenizer, self.template, self.image, self.video = tokenizer, template, image, video
        self.text_cfg = text_cfg or TextConfig()
        self.pad_id = tokenizer.pad

    def encode_train(self, sample: Sample, rng: random.Random) -> Example:
        """A training example: begin id, condition, answers; only answers (with their end symbol) are targets.

        What follows from the first answer on is cut to ``max_txt_len`` tokens, the condition to
        ``max_context_len`` positions.

        Raises:
            DataError: unreadable medium, or nothing to train; the message names the sample.
            PromptError: marks and media differ in number.
        """
        segments = self.template.train_segments(sample, rng)
        first = next((i for i, s in enumerate(segments) if s.supervised), len(segments))
        head = self._cut_context(self._spans(segments[:first]), sample)
        tail = self._cut_answers(self._spans(segments[first:]))
        media = [s.medium for s in segments if s.medium is not None]
        example = self._example([*head, *tail], media, sample)
        if not example.num_targets:
            raise DataError(
                f"sample {_name(sample)}: no supervised token",
                fix="give it an answer, or raise model.max_txt_len",
            )
        return example

    def encode_chat(self, messages: Sequence[Message]) -> Example:
        """A prompt with the assistant's turn left open; nothing is supervised.

        Raises:
            PromptError: see :meth:`Template.chat_segments`.
            DataError: unreadable medium.
        """
        return self._prompt(self.template.chat_segments(messages))

    def encode_prompt(self, text: str, media: Sequence[Any] = ()) -> Example:
        """A finished prompt text, taken as it is: one ``<ImageHere>`` per medium, the begin id in front.

        ``media`` are ``Image``/``Video`` parts or anything an image recipe reads.

        Raises:
            PromptError: marks and media differ in number (both are named).
            DataError: unreadable medium.
        """
        parts = [m if isinstance(m, Image | Video) else Image(m) for m in media]
        return self._prompt(self.template.prompt_segments(text, parts))

    @property
    def stop_ids(self) -> list[list[int]]:
        """Id sequences that end an answer: every stop string, as it is tokenised alone and after a letter."""
        found: list[list[int]] = []
        for text in self.template.stop:
            for ids in (self.tokenizer.encode(text), self._after_letter(text)):
                if ids and ids not in found:
                    found.append(ids)
        return found

    def _prompt(self, segments: list[Segment]) -> Example:
        media = [s.medium for s in segments if s.medium is not None]
        return self._example(self._spans(segments), media, Sample(messages=()))

    def _spans(self, segments: Sequence[Segment]) -> list[Span]:
        return [
            ([MEDIA_TOKEN], False) if s.medium is not None else (self.tokenizer.encode(s.text), s.supervised)
            for s in segments
        ]

    def _example(self, spans: Sequence[Span], media: Sequence[Image | Video], sample: Sample) -> Example:
        ids: list[int] = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        labels = [IGNORE_INDEX] * len(ids)
        for span, supervised in spans:
            ids += span
            labels += span if supervised else [IGNORE_INDEX] * len(span)
        kept = media[: ids.count(MEDIA_TOKEN)]
        tensors = [self._medium(m, _name(sample)) for m in kept]
        return Example(ids=ids, labels=labels, media=tensors, id=sample.id, source=sample.source)

    def _medium(self, medium: Image | Video, name: str) -> torch.Tensor:
        """``[f, 3, h, w]`` of a picture (one frame) or a clip."""
        label = str(medium.source) if isinstance(medium.source, str) else name
        if isinstance(medium, Image):
            return self.image(medium.source, label).unsqueeze(0)
        if self.video is None:
            raise DataError(f"clip {label}: this model takes pictures only", fix="use a composition with video")
        return self.video(medium.source, label)

    def _cut_context(self, spans: list[Span], sample: Sample) -> list[Span]:
        """The first ``max_context_len`` positions; losing a picture that way is an error."""
        room, out = self.text_cfg.max_context_len, []
        for ids, supervised in spans:
            is_medium = ids == [MEDIA_TOKEN]
            need = self.text_cfg.tokens_per_medium if is_medium else len(ids)
            if is_medium and need > room:
                raise DataError(
                    f"sample {_name(sample)}: a picture lies beyond max_context_len {self.text_cfg.max_context_len}",
                    fix="raise model.max_context_len or shorten the prompt",
                )
            out.append((ids if is_medium else ids[: max(room, 0)], supervised))
            room -= need
        return out

    def _cut_answers(self, spans: list[Span]) -> list[Span]:
        """The first ``max_txt_len`` tokens; with ``keep_end`` a cut answer still ends with the end symbol."""
        room, out = self.text_cfg.max_txt_len, []
        for ids, supervised in spans:
            if len(ids) > room:
                if self.text_cfg.keep_end:
                    end = self._after_letter(self.template.config.end_sym)
                    ids = (ids[: max(room - len(end), 0)] + end)[:room] if supervised else []
                out.append((ids[:room], supervised))
                break
            out.append((ids, supervised))
            room -= len(ids)
        return out

    def _after_letter(self, text: str) -> list[int]:
        """Ids of ``text`` where it follows a word directly."""
        alone = self.tokenizer.encode("x")
        joined = self.tokenizer.encode("x" + text)
        return joined[len(alone) :] if joined[: len(alone)] == alone else self.tokenizer.encode(text)


def _name(sample: Sample) -> str:
    return "/".join(filter(None, (sample.source, sample.id))) or "of the request"


def build_processor(model_cfg: ModelConfig) -> Processor:
    """The processor of a composition: tokenizer of ``llm.path``, the template, the picture recipe, the limits.

    Raises:
        ConfigError, WeightsError: an unusable template, recipe or tokenizer folder.
    """
    text_cfg = TextConfig(**model_cfg.text)
    tokenizer = Tokenizer.from_folder(model_cfg.llm.config.path, pad_token=text_cfg.pad_token)
    template = resolve("template", model_cfg.template.name)(model_cfg.template.config)
    return Processor(tokenizer, template, ImageRecipe(ImageRecipe.Config(**model_cfg.image)), text_cfg)
