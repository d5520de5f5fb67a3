"""The model that transformers itself builds from a folder, as the reference to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.common.errors import WeightsError
from vlm.common.types import Image, Message, Text
from vlm.processors.image.decode import decode

PLAIN = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Options of greedy decoding, over those of the folder."""


@dataclass
class Answer:
    """What a model computed for one conversation.

    Attributes:
        ids: of the prompt ``[s]``, a medium's positions as the image token.
        pixels: ``[f, 3, h, w]`` of each medium.
        logits: ``[t, vocab]`` float32 at the last positions of the prompt.
        new: ids of the greedy answer.
    """

    ids: list[int]
    pixels: list[Tensor]
    logits: Tensor
    new: list[int]


class Reference:
    """transformers' model and processor of a folder; no code in the folder is run.

    Attributes:
        model: in evaluation mode.
        processor: its own, with the image processor that works through PIL.
        image_token_id: id at the positions of media.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Raises WeightsError: transformers cannot load the folder."""
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

        self.device = device
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        plain = {"attn_implementation": "eager"}  # the other one of earlier versions leaves out caps of scores
        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **options, **plain)
            self.model = model.to(device).eval()
            self.processor = AutoProcessor.from_pretrained(folder, **options)
            self.processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        except (ValueError, OSError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise WeightsError(f"{folder}: transformers cannot load it ({error})") from error
        self.image_token_id: int = self.model.config.image_token_id

    def inputs(self, messages: Sequence[Message], text: str | None = None) -> Mapping[str, Any]:
        """What its processor makes of a conversation; ``text`` is the whole prompt where it has no chat template."""
        images = [decode(medium.source) for message in messages for medium in message.media]
        if text is not None:
            begin = self.processor.tokenizer.bos_token
            plain = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
            done = self.processor(images=images or None, text=text, return_tensors="pt", **plain)
            return done.to(self.device)  # type: ignore[no-any-return]
        chat = [{"role": message.role, "content": _content(message)} for message in messages]
        done = self.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return done.to(self.device)  # type: ignore[no-any-return]

    @property
    def has_template(self) -> bool:
        """Whether its processor has a chat template."""
        return self.processor.chat_template is not None

    def answer(self, inputs: Mapping[str, Any], pixels: list[Tensor], last: int, new_tokens: int) -> Answer:
        """Logits at the ``last`` positions of the prompt, and a greedy answer."""
        ids = inputs["input_ids"][0].tolist()
        with torch.inference_mode():
            logits = self.model(**inputs).logits[0, -last:].float().cpu()
            written = self.model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=0, **PLAIN)[0].tolist()
        new = written[len(ids) :] if written[: len(ids)] == ids else written
        return Answer(ids, [tensor.float().cpu() for tensor in pixels], logits, new)


def _content(message: Message) -> list[dict[str, Any]]:
    """The parts of a message in the form of chat templates."""
    result: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Text):
            result.append({"type": "text", "text": part.text})
        elif isinstance(part, Image):
            result.append({"type": "image", "image": decode(part.source)})
    return result
