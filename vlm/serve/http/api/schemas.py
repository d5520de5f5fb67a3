"""Forms of responses, for ``/openapi.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error."""

    error: ErrorDetail


class PromptTokens(BaseModel):
    """Of the tokens of a prompt, those that did not have to be read again."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens, visual ones included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class Spoken(BaseModel):
    """An answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """An answer, and why it ended."""

    index: int
    message: Spoken
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class TextChoice(BaseModel):
    """A text, and why it ended."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatBody(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChatChoice]
    usage: Usage


class CompletionBody(BaseModel):
    """What follows the prompts: ``n`` choices for the first, then for the second, and so on."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[TextChoice]
    usage: Usage


class ModelBody(BaseModel):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None


class ModelsBody(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelBody]


class TokensBody(BaseModel):
    """The ids of a prompt."""

    count: int
    max_model_len: int | None
    tokens: list[int]


class TextBody(BaseModel):
    """A text."""

    prompt: str


def _error(about: str) -> dict[str, Any]:
    return {"model": ErrorBody, "description": about}


ERRORS: Responses = {
    400: _error("the request is not valid, or asks for something that this server does not do"),
    401: _error("the API key is missing or unknown"),
    404: _error("no such model or address"),
    413: _error("the body, an image or a video is too large"),
    415: _error("the body is not JSON"),
    429: _error("too many questions are waiting; Retry-After says when to ask again"),
    "4XX": _error("any other fault of a request"),
    500: _error("a fault of this server"),
    502: _error("the vLLM server of --engine vllm gave no answer"),
    503: _error("this server is starting, stopping, or has no time left for the request"),
}
EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
CHAT: Responses = {200: {"model": ChatBody, "description": "the answers", "content": EVENTS}}
COMPLETION: Responses = {200: {"model": CompletionBody, "description": "the texts", "content": EVENTS}}
MODELS: Responses = {200: {"model": ModelsBody, "description": "the models"}}
MODEL: Responses = {200: {"model": ModelBody, "description": "the model"}}
TOKENS: Responses = {200: {"model": TokensBody, "description": "the tokens"}}
TEXT: Responses = {200: {"model": TextBody, "description": "the text"}}
