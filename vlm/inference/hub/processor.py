"""A composition's processor with the interface of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedTokenizerFast

from vlm.common.errors import PromptError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example, Image, MediaFacts, Message, Text, Video
from vlm.inference.hub.model import FACTS, fetched
from vlm.inference.load import read_source
from vlm.models.build import build_model
from vlm.processors.collate import VisualTokens, collate
from vlm.processors.processor import Processor, build_processor
from vlm.processors.templates.base import IMAGE_PLACEHOLDER

SOURCES = ("image", "video", "url", "path", "base64")
"""Keys of a content part that hold a medium."""


class ComposedProcessor:
    """Text and media as the composition reads them: ids, with the image token at each position of a medium, and pixels.

    Attributes:
        tokenizer: of transformers; its ids are the composition's.
        image_token: stands for an image in a text.
    """

    def __init__(self, processor: Processor, tokenizer: Any, visual: VisualTokens) -> None:
        self._processor = processor
        self._visual = visual
        self.tokenizer = tokenizer
        self.image_token: str = tokenizer.image_token
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(self.image_token)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> ComposedProcessor:
        """The processor of a folder, or of a repository on the Hub. Raises UserError: files are missing or damaged."""
        folder = fetched(pretrained_model_name_or_path, kwargs)
        cfg = read_source(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        empty = build_model(cfg.model, device="meta")
        visual = VisualTokens.of(empty.visual_tokens, empty.counters())
        return cls(build_processor(cfg.model), tokenizer, visual)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoProcessor") -> None:
        """What transformers calls for a class of a folder; nothing is to be done."""

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja text of the tokenizer, if the composition's template has such a form."""
        found: str | None = self.tokenizer.chat_template
        return found

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        add_special_tokens: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Finished prompts (as :meth:`apply_chat_template` writes them) and their images.

        Args:
            images: one image, or a list in reading order over all texts; what the composition's recipe reads.
            text: one text or several, with the image token once for each image; None: only pixels.
            return_tensors: ``"pt"``.
            add_special_tokens: whether a text lacks its begin token.
            kwargs: not used.

        Raises:
            PromptError: image tokens and images differ.
            DataError: an image cannot be read.
        """
        media = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
        if text is None:
            pixels = torch.stack([self._processor.image(image).unsqueeze(0) for image in media])
            return BatchFeature({"pixel_values": pixels[:, 0] if pixels.shape[1] == 1 else pixels})
        texts = [text] if isinstance(text, str) else list(text)
        examples = []
        for each in texts:
            count = each.count(self.image_token)
            examples.append(self._prompt(each, media[:count], add_special_tokens))
            media = media[count:]
        if media:
            raise PromptError(f"{len(media)} images more than image tokens ({self.image_token}) in the texts")
        return self._features(examples)

    def _prompt(self, text: str, media: list[Any], begin: bool) -> Example:
        """The example of a finished text; ``begin``: it begins with the begin token, even where that is not written."""
        bos = self.tokenizer.bos_token
        written = bool(bos) and text.startswith(bos)
        text = text.removeprefix(bos) if written else text
        return self._processor.encode_prompt(
            text.replace(self.image_token, IMAGE_PLACEHOLDER), media, begin=begin or written
        )

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tokenize: bool = False,
        add_generation_prompt: bool = True,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """A conversation as the composition's template writes it.

        Args:
            conversation: messages ``{"role", "content"}``, with media in content parts; or a list of conversations.
            tokenize: whether to return ids and pixels; otherwise the text.
            add_generation_prompt: must be true: the assistant's turn is left open.
            return_dict: ids and pixels as for :meth:`__call__`; otherwise the ids alone.
            kwargs: not used.

        Raises:
            PromptError: a message of another shape, or one without its image although ``tokenize`` is set.
        """
        if not add_generation_prompt:
            raise PromptError("add_generation_prompt=False: this processor leaves the assistant's turn open")
        single = not conversation or isinstance(conversation[0], Mapping)
        conversations: Sequence[Any] = [conversation] if single else conversation
        if not tokenize:
            texts = [self._text([to_message(m, blank=True) for m in each]) for each in conversations]
            return texts[0] if single else texts
        examples = [self._processor.encode_chat([to_message(m) for m in each]) for each in conversations]
        features = self._features(examples)
        return features if return_dict else features["input_ids"]

    def _text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, begin token included."""
        segments = self._processor.template.chat_segments(messages)
        words = "".join(s.text or ("" if s.medium is None else self.image_token) for s in segments)
        begins = bool(segments) and segments[0].bos
        return (self.tokenizer.bos_token or "" if begins else "") + words

    def _features(self, examples: list[Example]) -> BatchFeature:
        """Ids padded on the left, the attention mask, and pixels."""
        rows = [self._expanded(example) for example in examples]
        size, pad = max(map(len, rows)), self._processor.pad_id
        data: dict[str, Any] = {
            "input_ids": torch.tensor([[pad] * (size - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows]),
        }
        batch = collate(examples, pad)
        if batch.pixels is not None:
            data["pixel_values"] = batch.pixels[:, 0] if batch.pixels.shape[1] == 1 else batch.pixels
        about = batch.about or MediaFacts()
        facts = dict(zip(FACTS, (batch.frames, about.shapes, about.sizes, about.texts), strict=True))
        data |= {name: value for name, value in facts.items() if value is not None}
        return BatchFeature(data)

    def _expanded(self, example: Example) -> list[int]:
        """Ids with the image token at each position of a medium."""
        counts = iter(self._visual.of_media(example))
        ids: list[int] = []
        for index in example.ids:
            ids += [self.image_token_id] * next(counts) if index == MEDIA_TOKEN else [index]
        return ids

    def decode(self, ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """The text of ids ``[s]``."""
        row = [int(i) for i in ids if int(i) not in (self.image_token_id, IGNORE_INDEX) or not skip_special_tokens]
        return self._processor.tokenizer.decode(row, skip_special_tokens)

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """The texts of ids ``[b, s]``."""
        return [self.decode(row, skip_special_tokens) for row in ids]


def to_message(message: Mapping[str, Any], blank: bool = False) -> Message:
    """A message of transformers as one of ours; ``blank``: images may be missing, only their places count.

    Raises PromptError: a part of another kind, or without its medium.
    """
    content = message.get("content")
    parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    made: list[Text | Image | Video] = []
    for part in parts:
        kind = part.get("type")
        if kind == "text":
            made.append(Text(str(part.get("text", ""))))
            continue
        source = next((part[key] for key in SOURCES if part.get(key) is not None), None)
        if kind not in ("image", "video") or (source is None and not blank):
            raise PromptError(f"a content part of type {kind!r} without {' or '.join(SOURCES[:2])}")
        made.append(Video(source) if kind == "video" else Image(source))
    return Message(message.get("role", ""), made)  # type: ignore[arg-type]
