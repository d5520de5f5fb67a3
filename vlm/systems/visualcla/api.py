"""The Python functions of the published VisualCLA package: loading, ``chat`` and ``chat_in_stream``.

Thin functions over :class:`~vlm.inference.engine.Engine`. Differences from the published package
(airaria/Visual-Chinese-LLaMA-Alpaca): an image is optional, a call without ``history`` begins a new conversation, a
stream ends with exactly the text that ``chat`` returns, a merged folder is only looked up on this machine, and special
tokens such as ``<img>`` in a user's text stay literal.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import PromptError, UserError
from vlm.common.types import Image, Message, Text
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.inference.streaming import extend
from vlm.systems.visualcla.folders import composition

if TYPE_CHECKING:
    import torch

    from vlm.processors.image.recipe import ImageRecipe
    from vlm.processors.tokenizer.tokenizer import Tokenizer

Turn = dict[str, Any]
"""``{"type": "instruction" | "response", "value": str}``; the first question also has ``"first_instruction": True``."""

ROLES: dict[str, Any] = {"instruction": "user", "response": "assistant"}
WITHOUT_EFFECT = ("bos_token_id", "eos_token_id", "pad_token_id", "num_return_sequences", "transformers_version")
"""Keys of a published generation configuration that the tokenizer or the engine determines."""

LIBRARY = Generation(
    max_new_tokens=20, do_sample=False, min_length=0, top_p=1.0, repetition_penalty=1.0, max_length=2048
)
"""Defaults of a published generation configuration (those of transformers): one greedy answer."""


class VisualCLA(Engine):
    """The model of the published functions: an engine with its tokenizer and image processor, which can be moved."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the language model, with the special tokens of images."""
        return self.processor.tokenizer

    @property
    def image_processor(self) -> ImageRecipe:
        """Maps an image to pixels ``[3, h, w]``."""
        return self.processor.image

    def to(self, device: str | int | torch.device) -> VisualCLA:
        """Move the model to the device of an index or a name. Raises UserError if there is no such device."""
        where = device_of(device)
        if where != self.device:
            self.model.to(where)
            self.device = where
            self.forget()
        return self

    def eval(self) -> VisualCLA:
        """Does nothing: an engine is always in eval mode."""
        return self


def get_model_and_tokenizer_and_processor(
    visualcla_model: str | Path | None = None,
    text_model: str | Path | None = None,
    vision_model: str | Path | None = None,
    lora_model: str | Path | None = None,
    torch_dtype: torch.dtype | None = None,
    default_device: str | int | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    load_in_8bit: bool = False,
) -> tuple[VisualCLA, Tokenizer, ImageRecipe]:
    """Load a merged folder, or the released delta over its two foundations.

    The delta is already applied and the vocabulary resized: the model is ready to use.

    Args:
        visualcla_model: merged folder; the other three are not needed then.
        text_model: folder of Chinese-Alpaca-Plus.
        vision_model: folder of CLIP ViT-L/14.
        lora_model: folder of the released delta.
        torch_dtype: of the frozen weights; None is float16, and on a CPU float16 becomes float32.
        default_device: name or index; None takes the accelerator, if there is one.
        device_map: None, ``"auto"`` or ``{"": device}``; a model is on one device.
        load_in_8bit: load the language model in 8 bit (LLM.int8).

    Returns:
        Model, tokenizer, image processor.

    Raises:
        UserError: a folder is missing or does not fit, no such device, or 8 bit is not possible.
    """
    import torch

    from vlm.models.quantized.llm import check_quantize

    if isinstance(device_map, Mapping) and set(device_map) == {""}:
        default_device = device_map[""]
    elif device_map not in (None, "auto"):
        text = f"device_map is {device_map!r}, but a model is on one device"
        raise UserError(text, fix="leave it out, and set default_device")
    where = device_of(default_device)
    if load_in_8bit:
        check_quantize("int8", where)
    cfg = composition(visualcla_model, text_model, vision_model, lora_model, load_in_8bit=load_in_8bit)
    model = VisualCLA.load(cfg, where, torch_dtype or torch.float16)
    assert isinstance(model, VisualCLA)
    return model, model.tokenizer, model.image_processor


def chat(
    model: Engine, image: Any, text: str, history: list[Turn] | None = None, generation_config: Any = None
) -> tuple[str, list[Turn]]:
    """Ask one question.

    Args:
        model: from :func:`get_model_and_tokenizer_and_processor`, or any engine.
        image: path, PIL image or pixels ``[1, 3, h, w]`` of the conversation's first question; None: text only.
            It is not part of the history: pass it again with every later question.
        text: the question.
        history: earlier turns; question and answer are appended to this list. None begins a conversation.
        generation_config: None: the composition's own; else see :func:`generation_of`.

    Returns:
        The answer, and the history that ends with it.

    Raises:
        PromptError: an unusable history, or a question that does not fit.
        DataError: an image that cannot be read.
    """
    turns = [] if history is None else history
    asked = [*turns, instruction(text, turns)]
    answer = model.generate([conversation(asked, image)], generation_of(model, generation_config))[0]
    turns += [asked[-1], {"type": "response", "value": answer}]
    return answer, turns


def chat_in_stream(
    model: Engine, image: Any, text: str, history: list[Turn] | None = None, generation_config: Any = None
) -> Iterator[tuple[str, list[Turn]]]:
    """Ask one question and stream the answer; see :func:`chat`.

    Yields:
        The text so far, and a new history that ends with it; last what :func:`chat` returns. ``history`` itself is
        unchanged, so that a stream can be abandoned.
    """
    turns = copy.deepcopy(history or [])
    asked = [*turns, instruction(text, turns)]
    answer, sent = "", False
    for delta in model.stream(conversation(asked, image), generation_of(model, generation_config)):
        answer, sent = extend(answer, delta), True
        yield answer, copy.deepcopy([*asked, {"type": "response", "value": answer}])
    if not sent:  # an empty answer
        yield answer, [*asked, {"type": "response", "value": answer}]


def instruction(text: str, history: Sequence[Turn]) -> Turn:
    """A question as a turn of the history; the image belongs to the first."""
    return {"type": "instruction", "value": text} | ({} if history else {"first_instruction": True})


def conversation(history: Sequence[Turn], image: Any = None) -> list[Message]:
    """A history as messages, with the image before the question that has the key ``first_instruction``.

    Raises PromptError for a turn of another shape, or an image although no question has that key.
    """
    import torch

    if isinstance(image, torch.Tensor) and image.dim() == 4 and len(image) == 1:
        image = image[0].float().cpu()
    messages: list[Message] = []
    for number, turn in enumerate(history):
        if not isinstance(turn, Mapping) or turn.get("type") not in ROLES or not isinstance(turn.get("value"), str):
            fix = 'turns are {"type": "instruction" or "response", "value": text}'
            raise PromptError(f"history[{number}] is {turn!r}", fix=fix)
        here = image is not None and "first_instruction" in turn
        messages.append(Message(ROLES[turn["type"]], (*([Image(image)] if here else []), Text(turn["value"]))))
    if image is not None and not any(m.media for m in messages):
        raise PromptError(
            "an image was given, but no turn of the history has the key first_instruction",
            fix="set it in the first question, or leave the image out",
        )
    return messages


def generation_of(model: Engine, given: Any = None) -> Generation:
    """Options of an answer from None (the composition's), a ``Generation``, a mapping, or transformers' object.

    As in the published package, a mapping or transformers' object replaces all options: what it omits has transformers'
    default (greedy, no penalties).

    Raises:
        UserError: an unknown option, or a value outside its range.
    """
    if given is None or isinstance(given, Generation):
        return given or model.default_generation()
    declared = given if isinstance(given, Mapping) else given.to_diff_dict()
    if declared.get("num_return_sequences") not in (None, 1):
        raise UserError("num_return_sequences must be 1", fix="ask again for another answer")
    return LIBRARY.replace(**{k: v for k, v in declared.items() if v is not None and k not in WITHOUT_EFFECT})


def device_of(device: str | int | torch.device | None) -> torch.device:
    """The device of an index, a name or None (the accelerator, if any). Raises UserError if there is no such device."""
    from vlm.common.dist import gpu, pick_device

    return gpu(device) if isinstance(device, int) else pick_device(str(device or "auto"))
