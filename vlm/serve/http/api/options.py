"""How the answers to a request are written: its fields over the model's defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm.common.errors import ConfigError
from vlm.inference.generation import Generation
from vlm.serve.http.api.requests import SEED, ChatRequest, CompletionRequest
from vlm.serve.http.errors import ApiError

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.serve.http.limits import Limits


COLDEST = 1e-6
"""Lower temperatures are greedy: scores are divided by them."""


def generations(request: ChatRequest | CompletionRequest, engine: Engine, limits: Limits) -> list[Generation]:
    """The options of each of the ``n`` answers.

    Where the model's published limit of prompt and answer (``max_length``) is below its context, the context counts.
    An answer in JSON ends where the JSON does: no text of the template ends or cleans it.

    Raises ApiError: more answers or tokens than the server allows, or a value outside its range.
    """
    base, count = engine.default_generation(), request.n or 1
    if count > limits.choices:
        raise ApiError(f"n is {count}, allowed are {limits.choices}", param="n")
    longest = request.longest
    if longest is not None and longest > limits.tokens:
        raise ApiError(f"max_tokens is {longest}, allowed are {limits.tokens}", param="max_tokens")
    changes: dict[str, Any] = {"max_new_tokens": longest or min(base.max_new_tokens, limits.tokens), "num_beams": 1}
    if request.temperature is not None:
        changes["do_sample"] = request.temperature >= COLDEST
        changes |= {"temperature": request.temperature} if changes["do_sample"] else {}
    changes |= {k: v for k in ("top_p", "repetition_penalty") if (v := vars(request)[k]) is not None}
    if request.top_k is not None:
        changes["top_k"] = max(0, request.top_k)
    if request.min_tokens is not None:
        changes["min_length"] = request.min_tokens + 1
    if base.context == "turns" and engine.positions:
        changes["max_length"] = engine.positions
    plain = isinstance(request, CompletionRequest) or is_json(request)
    if plain:
        changes["cleanup"] = "raw"
    if is_json(request):
        changes["min_length"] = 1
    own = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if own or plain:
        texts = base.stop if base.stop is not None else engine.processor.template.stop
        changes["stop"] = tuple(dict.fromkeys([*([] if plain else texts), *own]))
    try:
        whole = base.replace(**changes)
        seed = whole.seed if request.seed is None else request.seed
        return [whole if seed is None else whole.replace(seed=_following(seed, k)) for k in range(count)]
    except ConfigError as error:
        raise ApiError(str(error)) from None


def is_json(request: ChatRequest | CompletionRequest) -> bool:
    """Whether the answer must be JSON."""
    return request.response_format is not None and request.response_format.type != "text"


def schema_of(request: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """The schema of an answer that must be JSON."""
    form = request.response_format
    if form is not None and form.json_schema is not None and form.type == "json_schema":
        return form.json_schema.schema_ or {}
    return {"type": "object"}


def _following(seed: int, index: int) -> int:
    """``seed + index``, within 64 bits."""
    return (seed + index + SEED) % (2 * SEED) - SEED
