"""The endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from vlm.common.types import MEDIA_TOKEN
from vlm.serve.http.api import schemas
from vlm.serve.http.api.connection import answer_to
from vlm.serve.http.api.media import to_conversation
from vlm.serve.http.api.options import generations, is_json, schema_of
from vlm.serve.http.api.prompts import LONG, check_fits, check_ids, check_length, positions_of, raw_prompt
from vlm.serve.http.api.replies import Reply
from vlm.serve.http.api.requests import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    check,
)
from vlm.serve.http.api.server import Answers, Question, Server
from vlm.serve.http.errors import ApiError

MOST_ANSWERS = 128
"""Answers to all prompts of one request."""


def add_routes(server: Server) -> APIRouter:
    """A router with all endpoints of the API over one server."""
    router = APIRouter(responses=schemas.ERRORS)
    post = partial(router.post, response_class=JSONResponse)

    @post("/v1/chat/completions", responses=schemas.CHAT, summary="Answer a conversation")
    async def chat(request: Request, body: ChatRequest) -> Response:
        """An answer to the last message, which is the user's. With ``stream`` it comes as server-sent events."""
        return await answer_to(request, lambda: _chat(server, request, body))

    @post("/v1/completions", responses=schemas.COMPLETION, summary="Go on with a text")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """What follows a raw prompt, without the white space around it."""
        return await answer_to(request, lambda: _completions(server, request, body))

    @router.get("/v1/models", responses=schemas.MODELS, response_class=JSONResponse, summary="List the models")
    async def models() -> Response:
        """The models by the names under which requests ask for them."""
        found = [_model(server, name) for name in server.models.engines]
        return JSONResponse({"object": "list", "data": found})

    @router.get("/v1/models/{name:path}", responses=schemas.MODEL, response_class=JSONResponse, summary="One model")
    async def model(name: str) -> Response:
        """A model by its name."""
        return JSONResponse(_model(server, server.engine(name)[0]))

    @post("/tokenize", responses=schemas.TOKENS, summary="Tokens of a prompt")
    async def tokenize(request: Request, body: TokenizeRequest) -> Response:
        """The ids of a conversation with the answer left open, or of a raw prompt.

        There is an id for every position that the prompt takes: -200 at each of an image or video. ``count`` is their
        number.
        """
        return await answer_to(request, lambda: _tokenize(server, request, body))

    @post("/detokenize", responses=schemas.TEXT, summary="Text of tokens")
    async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
        """The text of token ids, special tokens included."""
        _, engine = server.engine(body.model)
        ids = [i for i in body.tokens if i != MEDIA_TOKEN]
        check_ids(ids, engine, "tokens")
        tokenizer = engine.processor.tokenizer
        text = await server.in_thread(request, lambda: tokenizer.decode(ids, skip_special=False))
        return JSONResponse({"prompt": text})

    return router


async def _chat(server: Server, request: Request, body: ChatRequest) -> Response:
    name, engine = server.engine(body.model)
    check(body)
    options = generations(body, engine, server.limits)
    remote = await server.fetch(body.messages)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None

    def prepare() -> list[Question]:
        schema = schema_of(body) if is_json(body) else None
        times = LONG if body.truncation == "auto" else 1
        check_length(_characters(body.messages), engine, server.longest_token(engine), "messages", times)
        conversation = to_conversation(body.messages, server.limits, remote)
        if body.truncation == "auto":
            return [Question(conversation, options, schema, logprobs)]
        example = engine.processor.encode_chat(conversation)
        check_fits(example, engine, options[0], "messages")
        return [Question(example, options, schema, logprobs)]

    return await _reply(await server.ask(request, name, engine, prepare, "messages"), body, engine)


async def _completions(server: Server, request: Request, body: CompletionRequest) -> Response:
    name, engine = server.engine(body.model)
    check(body)
    options = generations(body, engine, server.limits)
    prompts = _prompts(body)
    if len(prompts) * len(options) > MOST_ANSWERS:
        raise ApiError(f"{len(prompts)} prompts with {len(options)} answers each, allowed are {MOST_ANSWERS} answers")

    def prepare() -> list[Question]:
        examples = []
        for prompt in prompts:
            longest = server.longest_token(engine) if isinstance(prompt, str) else 1
            check_length(len(prompt), engine, longest, "prompt")
            examples.append(raw_prompt(prompt, engine))
            check_fits(examples[-1], engine, options[0], "prompt")
        schema = schema_of(body) if is_json(body) else None
        return [Question(example, options, schema, body.logprobs) for example in examples]

    return await _reply(await server.ask(request, name, engine, prepare, "prompt"), body, engine)


def _characters(messages: Sequence[ChatMessage]) -> int:
    """Characters of all texts of a conversation."""
    contents = [message.content for message in messages]
    texts = [content for content in contents if isinstance(content, str)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return sum(map(len, texts)) + sum(len(part.text) for part in parts if part.type == "text")


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts of a request. Raises ApiError: there is none."""
    found: Any = body.prompt
    if isinstance(found, str) or (found and isinstance(found[0], int)):
        found = [found]
    if not found or not all(found):
        raise ApiError("the prompt is empty", param="prompt")
    return list(found)


async def _reply(answers: Answers, body: ChatRequest | CompletionRequest, engine: Any) -> Response:
    reply = Reply(answers, body, engine.processor.tokenizer)
    return reply.stream() if body.stream else await reply.whole()


async def _tokenize(server: Server, request: Request, body: TokenizeRequest) -> Response:
    _, engine = server.engine(body.model)
    messages = body.messages
    if (messages is None) == (body.prompt is None):
        raise ApiError("give either messages or prompt", param="messages")
    remote = await server.fetch(messages or ())

    def count() -> list[int]:
        text = len(body.prompt or "") + _characters(messages or ())
        check_length(text, engine, server.longest_token(engine), "messages" if messages else "prompt", LONG)
        if messages is None:
            return positions_of(raw_prompt(body.prompt or "", engine), engine)
        conversation = to_conversation(messages, server.limits, remote)
        return positions_of(engine.processor.encode_chat(conversation), engine)

    ids = await server.in_thread(request, count)
    return JSONResponse({"count": len(ids), "max_model_len": engine.positions, "tokens": ids})


def _model(server: Server, name: str) -> dict[str, Any]:
    positions = server.models.engines[name].positions
    owner = {"object": "model", "created": server.started, "owned_by": "vlm"}
    return {"id": name, **owner, "max_model_len": positions}
