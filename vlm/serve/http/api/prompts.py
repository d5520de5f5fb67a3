"""Prompts of requests: what a model reads, and how many positions that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example
from vlm.inference.context import room_for_prompt, too_long
from vlm.processors.collate import VisualTokens
from vlm.serve.http.errors import ApiError

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation


LONG = 4
"""Contexts full of text that a conversation may have whose oldest turns are left out."""


def check_length(text: int, engine: Engine, longest: int, param: str, times: int = 1) -> None:
    """Raises ApiError: a text cannot fit, however it is divided into tokens, so that none is tokenised in vain.

    Args:
        text: characters, or ids, together.
        engine: the model.
        longest: characters of its longest token, 1 for ids.
        param: the field at fault.
        times: so many contexts are taken.
    """
    positions = engine.positions or engine.default_generation().max_length
    if text > times * positions * longest:
        what = "characters" if longest > 1 else "ids"
        most = f"{times * positions:,} positions"
        raise ApiError(f"{text:,} {what} do not fit into {most}", code="context_length_exceeded", param=param)


def raw_prompt(prompt: str | list[int], engine: Engine) -> Example:
    """The prompt of a text, after the begin id, or of ids, which are used as they are.

    Raises ApiError: nothing, or ids that the model does not have; PromptError: a place for an image.
    """
    if isinstance(prompt, str):
        example = engine.processor.encode_prompt(prompt)
    else:
        check_ids(prompt, engine, "prompt")
        example = Example(list(prompt), [IGNORE_INDEX] * len(prompt))
    if not example.ids:
        raise ApiError("the prompt is empty", param="prompt")
    return example


def check_ids(ids: Sequence[int], engine: Engine, param: str) -> None:
    """Raises ApiError: the model does not have all of these ids."""
    size = engine.model.llm.vocab_size
    wrong = next((i for i in ids if not 0 <= i < size), None)
    if wrong is not None:
        raise ApiError(f"{param}: {wrong} is not a token; this model has 0 to {size - 1}", param=param)


def check_fits(example: Example, engine: Engine, generation: Generation, param: str) -> None:
    """Raises ApiError: the prompt is longer than the context, less the room for an answer."""
    room = room_for_prompt(generation, engine.positions)
    taken = len(positions_of(example, engine))
    if generation.context == "turns" and taken > room:
        raise ApiError(str(too_long(taken, room)), code="context_length_exceeded", param=param)


def positions_of(example: Example, engine: Engine) -> list[int]:
    """The id at every position of a prompt in the language model; -200 at those of images and videos."""
    model, ids = engine.model, list[int]()
    counts = iter(VisualTokens.of(model.visual_tokens, model.counters()).of_media(example) if example.media else ())
    for i in example.ids:
        ids += [MEDIA_TOKEN] * next(counts) if i == MEDIA_TOKEN else [i]
    return ids
