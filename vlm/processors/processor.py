"""Sample -> Example: where template, tokenizer and image recipe meet.

Training, chat, HTTP and evaluation all go through here.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vlm.common.bounds import Count, Natural
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_text, resolve
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example, Image, Message, Prepared, Sample, Split, Video
from vlm.processors.collate import VisualTokens
from vlm.processors.features.media import MediaCache, stored_of
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.questions import asked_in, question_tokenizer, with_questions
from vlm.processors.templates.base import MEDIUM, BaseTemplate, Segment, without_end
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.processors.truncation import (
    Span,
    keep_answers,
    keep_context,
    keep_first,
    keep_last,
    only_last,
    what_was_cut,
)
from vlm.processors.video.recipe import VideoRecipe

if TYPE_CHECKING:
    import torch

    from vlm.config.api import ModelConfig


SAMPLE_PIXELS = 1_000_000_000
"""Pixels of all images of a sample: 80 photos of 12 megapixels, 11 images at the cap of one."""


@register_text("default")
@dataclass
class TextConfig:
    """Tokenizer and limits of the text side, by their published names.

    Example: ``text: {max_txt_len: 160, keep_end: true}``
    """

    max_txt_len: Count | None = None  # tokens kept from the first answer on; null: what the LLM's context holds
    max_context_len: Count | None = None  # positions before the first answer; null: no limit of their own
    keep_end: bool = False  # a cut answer still ends with end_sym (the published code loses it)
    max_input_len: Natural = 0  # tokens kept of a prompt, the last ones, begin id and no image counted; 0: all
    max_turn_len: Natural = 0  # positions of a turn with begin and end id; above 0 the two limits above do not apply
    tokens_per_medium: Count = 1  # positions that an image counts in max_context_len and max_turn_len
    tokenizer: str = ""  # folder of the tokenizer; empty: the LLM's
    pad_token: str = ""  # existing piece or special token for padding; empty: the folder's, else unk, else eos
    special_tokens: list[str] = field(default_factory=list)  # made special; new ones get the next ids, in order
    new_pad_token: str = ""  # pad token of a folder that names none, instead of pad_token
    bos_id: Natural | None = None  # forced, whatever the folder says
    eos_id: Natural | None = None
    legacy: bool | None = None  # sentencepiece: a dummy space after every special token; null: as the folder says
    fast: bool = False  # tokenizer.json, where tokenizer.model is there too


class Processor:
    """Template, tokenizer and image recipe of one model; pickles into loader workers.

    Attributes:
        pad_id: id at padding.
        media_id: id of the template's special token for a medium, or None (``Example.ids`` has ``MEDIA_TOKEN`` in
            either case).
        context: positions of the LLM and those of media in it, if they are known: the limit of training examples
            where ``text_cfg`` has none.
        cache: asked for the features of a medium of a training example before it is decoded; None: there is none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: BaseTemplate,
        image: ImageRecipe,
        text_cfg: TextConfig | None = None,
        video: Callable[[Any, str, random.Random | None], torch.Tensor | Prepared] | None = None,
        question: Callable[[str], list[int]] | None = None,
    ) -> None:
        """``video`` maps (source, name, rng or None) to ``[f, 3, h, w]``; None: images only.

        ``question`` gives the ids of a text for the bridge that reads the question about a medium; None: there is none.

        Raises ConfigError: the tokenizer lacks a token that the template or the padding needs.
        """
        template = template.bound(tokenizer)
        self.tokenizer, self.template, self.image, self.video = tokenizer, template, image, video
        self.text_cfg = text_cfg or TextConfig()
        self.question = question
        self.pad_id = tokenizer.pad
        self.context: tuple[int, VisualTokens] | None = None
        self.cache: MediaCache | None = None
        token = template.config.media_token
        self.media_id = tokenizer.id_of(token) if token else None
        if token and not tokenizer.is_special(token):
            raise ConfigError(
                f"model.template.media_token is {token!r}, which is not a special token of the tokenizer",
                fix=f"add it: model.text.special_tokens: ['{token}'], or set media_token to ''",
            )

    def encode_train(self, sample: Sample, rng: random.Random, *, augment: bool = True) -> Example:
        """A training example: begin id, condition, answers; only answers (with their end) are targets.

        Of a sample with ``only_last`` the last answer is; one that a limit cuts off is an error.

        From the first answer on ``max_txt_len`` tokens are kept, of the condition ``max_context_len`` positions; or of
        every turn ``max_turn_len``. Without ``max_txt_len`` and ``max_turn_len`` the LLM's context is the limit.
        ``Example.cut`` says what is cut. With ``augment`` the training part of the recipes applies, which draws from
        ``rng`` after the text; without, media are treated as in chat.

        Raises:
            DataError: unreadable medium, or no supervised token; the message names the sample.
            PromptError: placeholders and media differ in number.
        """
        segments = self._asked(self.template.train_segments(sample, rng), asked_in(sample.messages))
        segments = self._split(segments, sample, rng if augment else None)
        whole = self._spans(segments)
        spans, limit = self._truncate(whole, sample), self._limits()
        example = self._example(spans, segments, sample, rng if augment else None)
        if self.context is not None and not self.has_limit:
            positions, visual_tokens = self.context
            if visual_tokens.fused_length(example) > positions:
                sizes = visual_tokens.of_media(example)
                spans = keep_context(spans, positions, sizes, int(self.tokenizer.bos is not None))
                limit = f"{positions} positions, the context of the LLM"
                example.ids, example.labels = self._labelled(spans)
                for facts in (example.media, example.sizes, example.texts, example.stored):
                    del facts[example.ids.count(MEDIA_TOKEN) :]
        example.cut = what_was_cut(whole, spans, limit)
        if sample.only_last:
            example.labels = self._labelled(only_last(whole, spans))[1]
        if not example.num_targets:
            limit = "model.text.max_turn_len" if self.text_cfg.max_turn_len > 0 else "model.max_txt_len"
            fix = f"give it an answer, or raise {limit}"
            raise DataError(f"sample {_name(sample)}: no supervised token", fix=fix)
        return example

    @property
    def has_limit(self) -> bool:
        """Whether the configuration limits training examples itself; otherwise the LLM's context does."""
        return self.text_cfg.max_txt_len is not None or self.text_cfg.max_turn_len > 0

    def within(self, positions: int | None, visual_tokens: VisualTokens) -> Processor:
        """A copy whose training examples fit into ``positions`` of the LLM, if they are known, see ``context``."""
        other = copy.copy(self)
        other.context = None if positions is None else (positions, visual_tokens)
        return other

    def reading(self, cache: MediaCache | None) -> Processor:
        """A copy that, for training examples, asks ``cache`` for the features of a medium before it decodes it."""
        other = copy.copy(self)
        other.cache = cache
        return other

    def encode_chat(self, messages: Sequence[Message]) -> Example:
        """A prompt with the assistant's turn left open; nothing is supervised.

        Raises PromptError: see :meth:`BaseTemplate.chat_segments`; DataError: unreadable medium.
        """
        return self._prompt(self._asked(self.template.chat_segments(messages), asked_in(messages)))

    def encode_prompt(self, text: str, media: Sequence[Any] = (), begin: bool = True) -> Example:
        """A finished prompt, used unchanged: one ``<ImageHere>`` per medium, after the begin id unless not ``begin``.

        Special tokens in it are read as such. ``media`` are ``Image``/``Video`` parts or what an image recipe reads.

        Raises:
            PromptError: placeholders and media differ in number (both are named).
            DataError: unreadable medium.
        """
        parts = [m if isinstance(m, Image | Video) else Image(m) for m in media]
        segments = self.template.prompt_segments(text, parts)
        if not begin:
            segments = [replace(segment, bos=False) for segment in segments]
        return self._prompt(self._asked(segments, [(m, text) for m in parts]))

    def encode_answer(self, text: str, end: bool = True) -> list[int]:
        """Ids of an answer after an open prompt, as training writes it; without ``end`` only those of the text."""
        segments = self.template.answer_segments(text)
        spans = self._spans(segments if end else without_end(segments))
        return [i for span in spans if span.supervised for i in span.ids]

    def as_uint8(self) -> Processor:
        """A copy that returns images as uint8 (a quarter of the bytes); ``image.normalize`` completes them."""
        other = copy.copy(self)
        other.image = self.image.as_uint8()
        if isinstance(self.video, VideoRecipe):
            other.video = VideoRecipe(self.video.config, other.image)
        return other

    @property
    def stop_ids(self) -> list[list[int]]:
        """Id sequences that end an answer: every stop string, as it is tokenised alone and after a letter."""
        both = [spell(text) for text in self.template.stop for spell in (self.tokenizer.encode, self._after_letter)]
        return [ids for k, ids in enumerate(both) if ids and ids not in both[:k]]

    def _asked(self, segments: list[Segment], asked: Sequence[tuple[Image | Video, str]]) -> list[Segment]:
        """The segments, each medium with the question about it if a bridge reads that."""
        if self.question is None:
            return segments
        return with_questions(segments, asked, self.template.config.media_token)

    def _prompt(self, segments: list[Segment]) -> Example:
        if self.cache is not None:
            return self.reading(None)._prompt(segments)
        sample = Sample(messages=())
        segments = self._split(segments, sample)
        spans = keep_last(self._spans(segments), self.text_cfg.max_input_len, warn=True)
        return self._example(spans, segments, sample)

    def _split(self, segments: list[Segment], sample: Sample, rng: random.Random | None = None) -> list[Segment]:
        """The segments with an image that its recipe divides as several media and the texts between them."""
        if not (isinstance(self.image, ImageRecipe) and self.image.splits):
            return segments
        token, result, before = self.template.config.media_token, [], self._decoded()
        whole = bool(token) or any(segment.joined for segment in segments)
        for segment in segments:
            if not isinstance(segment.medium, Image):
                result.append(segment)
                continue
            label = segment.medium.source if isinstance(segment.medium.source, str) else _name(sample)
            value = self._image(segment.medium.source, label, rng)
            self._check_decoded(before, sample)
            for k, piece in enumerate(value.pieces if isinstance(value, Split) else [value]):
                text, medium = (piece, None) if isinstance(piece, str) else (token, Image(piece))
                joined = segment.joined if k == 0 else whole
                result.append(replace(segment, text=text, medium=medium, bos=segment.bos and k == 0, joined=joined))
        return result

    def _truncate(self, spans: list[Span], sample: Sample) -> list[Span]:
        """The spans of a training sample within the limits of ``text_cfg``."""
        cfg = self.text_cfg
        per_turn = cfg.max_turn_len > 0
        name = "max_turn_len" if per_turn else "max_context_len"
        limit = cfg.max_turn_len if per_turn else cfg.max_context_len
        error = DataError(
            f"sample {_name(sample)}: an image is beyond {name} {limit}",
            fix=f"raise model.{name} or shorten the prompt",
        )
        if per_turn and limit is not None:
            return keep_first(spans, limit, cfg.tokens_per_medium, per_turn=True, error=error)
        first = next((i for i, s in enumerate(spans) if s.supervised), len(spans))
        head = keep_last(spans[:first], cfg.max_input_len)
        if limit is not None:
            head = keep_first(head, limit, cfg.tokens_per_medium, per_turn=False, error=error)
        if cfg.max_txt_len is None:
            return [*head, *spans[first:]]
        end = self._after_letter(self.template.end) if cfg.keep_end else None
        return [*head, *keep_answers(spans[first:], cfg.max_txt_len, end)]

    def _spans(self, segments: Sequence[Segment]) -> list[Span]:
        """Joined segments are tokenised as one text and cut where supervision changes."""
        starts = [k for k, segment in enumerate(segments) if not (k and segment.joined)]
        runs = [segments[a:b] for a, b in zip(starts, [*starts[1:], None])]
        return [span for run in runs for span in self._encode(run)]

    def _encode(self, run: Sequence[Segment]) -> list[Span]:
        """Spans of segments that form one text, in which a medium is written as its special token."""
        bos = run[0].bos
        media = {s.text or MEDIUM for s in run if s.medium is not None}
        if media == {MEDIUM} and len(run) == 1:
            return [Span([MEDIA_TOKEN], bos=bos)]
        tokenizer = self._tokenizer_of_media if MEDIUM in media else self.tokenizer
        text = ""
        literal: list[tuple[int, int]] = []
        places: list[tuple[int, bool]] = []
        for k, segment in enumerate(run):
            if k and segment.supervised != run[k - 1].supervised:
                places.append((len(text), segment.supervised))  # an id across a border is the answer's
            literal += [(len(text) + a, len(text) + b) for a, b in segment.literal]
            text += MEDIUM if segment.medium is not None and not segment.text else segment.text
        media_ids = {tokenizer.id_of(token) for token in media}
        ids = [MEDIA_TOKEN if i in media_ids else i for i in tokenizer.encode(text, literal=literal)]
        cuts = tokenizer.lengths(text, places, literal)
        spans: list[Span] = []
        for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            spans.append(Span(ids[a:b], run[0].supervised ^ bool(len(spans) % 2), bos=bos and not spans))
        if run[-1].eos and self.tokenizer.eos is not None:
            spans[-1] = replace(spans[-1], ids=[*spans[-1].ids, self.tokenizer.eos], eos=True)
        return spans

    @cached_property
    def _tokenizer_of_media(self) -> Tokenizer:
        """The tokenizer with a token for the place of an image, where the template has none."""
        return self.tokenizer.with_token(MEDIUM)

    def _example(
        self, spans: Sequence[Span], segments: Sequence[Segment], sample: Sample, rng: random.Random | None = None
    ) -> Example:
        ids, labels = self._labelled(spans)
        shown = [(s.medium, s.question) for s in segments if s.medium is not None][: ids.count(MEDIA_TOKEN)]
        texts = [] if self.question is None else [self.question(question) for _, question in shown]
        values, before = [], self._decoded()
        for medium, _ in shown:
            values.append(self._medium(medium, _name(sample), rng))
            self._check_decoded(before, sample)
        tensors = [value.pixels if isinstance(value, Prepared) else value for value in values]
        sizes = [value.size if isinstance(value, Prepared) else None for value in values]
        known, stored = sizes if any(sizes) else [], stored_of(values)
        return Example(ids, labels, tensors, sample.id, sample.source, sizes=known, texts=texts, stored=stored)

    def _check_decoded(self, before: int, sample: Sample) -> None:
        """Raises DataError: since ``before`` more pixels were decoded than a sample may have."""
        if self._decoded() - before > SAMPLE_PIXELS:
            raise DataError(
                f"sample {_name(sample)}: its images have more than {SAMPLE_PIXELS:,} pixels together",
                fix="shrink them, or divide the record",
            )

    def _limits(self) -> str:
        """The limits of the configuration, for messages."""
        cfg = self.text_cfg
        names = ["max_turn_len"] if cfg.max_turn_len > 0 else ["max_txt_len", "max_context_len", "max_input_len"]
        return ", ".join(f"model.text.{name} {vars(cfg)[name]}" for name in names if vars(cfg)[name])

    def _labelled(self, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Ids and labels of the spans, one after the other."""
        ids: list[int] = []
        labels: list[int] = []
        for span in spans:
            begin = [self.tokenizer.bos] if span.bos and self.tokenizer.bos is not None else []
            ids += [*begin, *span.ids]
            labels += [IGNORE_INDEX] * len(begin)
            labels += span.ids if span.supervised else [IGNORE_INDEX] * len(span.ids)
        return ids, labels

    def _decoded(self) -> int:
        """Pixels that the image recipe has decoded; 0 for one that does not count them."""
        return self.image.decoded if isinstance(self.image, ImageRecipe) else 0

    def _medium(self, medium: Image | Video, name: str, rng: random.Random | None) -> torch.Tensor | Prepared:
        """``[f, 3, h, w]`` of an image (one frame, or its tiles) or a video."""
        if isinstance(medium.source, Prepared):
            return medium.source
        label = str(medium.source) if isinstance(medium.source, str) else name
        if isinstance(medium, Image):
            value = self._image(medium.source, label, rng)
            return value if isinstance(value, Prepared) else value.unsqueeze(0)
        if self.video is None:
            raise DataError(f"video {label}: this model takes images only", fix="set model.video, e.g. {num_frames: 8}")
        if self.cache is not None and isinstance(self.video, VideoRecipe):
            return self.cache.video(self.video, medium.source, label, rng)
        return self.video(medium.source, label, rng)

    def _image(self, source: Any, label: str, rng: random.Random | None) -> Any:
        """What the image recipe gives, or what the cache has of it."""
        return (
            self.image(source, label, rng) if self.cache is None else self.cache.image(self.image, source, label, rng)
        )

    def _after_letter(self, text: str) -> list[int]:
        """Ids of ``text`` where it follows a word directly."""
        alone = self.tokenizer.encode("x")
        joined = self.tokenizer.encode("x" + text)
        return joined[len(alone) :] if joined[: len(alone)] == alone else self.tokenizer.encode(text)


def _name(sample: Sample) -> str:
    return "/".join(filter(None, (sample.source, sample.id))) or "of the request"


def build_processor(model_cfg: ModelConfig) -> Processor:
    """The processor of a composition: tokenizer of ``llm.path``, the template, the recipes, the limits.

    Raises:
        ConfigError, WeightsError: an unusable template, recipe or tokenizer folder, or the fusion embeds another token
            for a medium than the tokenizer has.
    """
    text_cfg = model_cfg.text.config
    names = ("pad_token", "special_tokens", "new_pad_token", "bos_id", "eos_id", "legacy", "fast")
    options = {name: getattr(text_cfg, name) for name in names}
    tokenizer = Tokenizer.from_folder(text_cfg.tokenizer or model_cfg.llm.config.path, **options)
    template = resolve("template", model_cfg.template.name)(model_cfg.template.config)
    image = resolve("image", model_cfg.image.name)(model_cfg.image.config)
    frames = model_cfg.video
    video = None if frames is None else resolve("video", frames.name)(frames.config, image)
    processor = Processor(tokenizer, template, image, text_cfg, video, question_tokenizer(model_cfg))
    placeholder = model_cfg.fusion.get("image_token_id")
    if placeholder is not None and processor.media_id not in (None, placeholder):
        raise ConfigError(
            f"model.fusion.image_token_id is {placeholder}, but the tokenizer's "
            f"{processor.template.config.media_token!r} is {processor.media_id}",
            fix=f"set image_token_id to {processor.media_id}, or use the tokenizer of the LLM's own folder",
        )
    return processor
