"""A small server with the part of vLLM 0.33.0's API that is used, over a language model of this library.

It takes exactly what vLLM takes. What vLLM would refuse or might not survive is answered with an error *and* kept in
``faults``, so that a test sees it. Read from vLLM 0.33.0:

* ``entrypoints/openai/completion/protocol.py``: names, types and defaults of the fields, what may go together; the
  chunks of a stream; ``token_ids`` and ``token_id:7``.
* ``entrypoints/openai/completion/serving.py``: chunks without text, the chunk with the usage, ``[DONE]``, errors in the
  stream; top log-probabilities with the written token first.
* ``renderers/embed_utils.py``: base64 of ``torch.save``, two dimensions, floating point, the model's width.
* ``renderers/online_renderer.py``: neither ``suffix`` nor ``echo`` nor ``prompt_logprobs`` with rows.
* ``sampling_params.py``: ranges; temperature 0 is greedy. ``v1/core/sched/utils.py``: a stop token is among the ids,
  and is not looked for before ``min_tokens``.
* ``entrypoints/serve/tokenize/protocol.py``, ``entrypoints/serve/engine/protocol.py`` (``/v1/models``, errors).
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from vlm.inference.engine import Engine
from vlm.inference.incremental import Prompt, decoder_of

FIELDS = {
    "model": str, "prompt": list, "prompt_embeds": str, "max_tokens": int, "min_tokens": int, "temperature": float,
    "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float, "presence_penalty": float,
    "frequency_penalty": float, "ignore_eos": bool, "stop_token_ids": list, "return_token_ids": bool, "stream": bool,
    "stream_options": dict, "seed": int, "logit_bias": dict, "logprobs": int, "return_tokens_as_token_ids": bool,
    "cache_salt": str, "priority": int,
}  # fmt: skip
"""The fields of ``CompletionRequest`` that are known here; another one is a fault."""


class StandIn:
    """The server.

    Attributes:
        faults: what was wrong with requests.
        bodies: all requests to ``/v1/completions``.
        written: tokens written for each of them.
        hung_up: how many clients left before their answer ended.
    """

    def __init__(self, engine: Engine, name: str = "llm", positions: int = 200) -> None:
        self.engine, self.name, self.positions = engine, name, positions
        self.llm = engine.model.llm
        self.faults: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.written: list[int] = []
        self.hung_up = 0
        self.key: str | None = None  # --api-key
        self.takes_rows = True  # --enable-prompt-embeds
        self.pause = 0.0  # seconds before each token
        self.dies_after: int | None = None  # tokens
        self.refusal: tuple[int, str] | None = None
        self.shift = 0.0  # another model's embeddings
        self.app = self._app()

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def authorised(request: Request, call_next: Any) -> Any:
            if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
                return error("Unauthorized", 401)
            return await call_next(request)

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            card = {"id": self.name, "object": "model", "owned_by": "vllm", "max_model_len": self.positions}
            return {"object": "list", "data": [card]}

        @app.post("/tokenize")
        async def tokenize(request: Request) -> dict[str, Any]:
            body = await request.json()
            ids = self.engine.processor.tokenizer.encode(body["prompt"])
            return {"count": len(ids), "max_model_len": self.positions, "tokens": ids, "token_strs": None}

        @app.post("/v1/completions")
        async def completions(request: Request) -> Any:
            if request.headers.get("content-type") != "application/json":
                self.faults.append("no JSON")
            body = await request.json()
            self.bodies.append(body)
            if self.refusal is not None:
                return error(*reversed(self.refusal))
            try:
                rows = self._rows(body)
                self._check(body, len(rows))
            except ValueError as fault:
                if str(fault) != "You must set `--enable-prompt-embeds` to input `prompt_embeds`.":
                    self.faults.append(str(fault))
                return error(str(fault), 400)
            return StreamingResponse(self._stream(body, rows), media_type="text/event-stream")

        return app

    def _rows(self, body: dict[str, Any]) -> torch.Tensor:
        """The prompt's rows ``[s, d]``."""
        if ("prompt" in body) == ("prompt_embeds" in body):
            raise ValueError("exactly one prompt is expected")
        if "prompt" in body:
            ids = body["prompt"]
            if not ids or not all(type(i) is int and 0 <= i < self.llm.vocab_size for i in ids):
                raise ValueError(f"ids {ids}")
            with torch.inference_mode():
                return self.llm.embed(torch.tensor(ids)) + self.shift
        if not self.takes_rows:
            raise ValueError("You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        data = base64.b64decode(body["prompt_embeds"], validate=True)
        rows = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        if not isinstance(rows, torch.Tensor) or rows.dim() != 2 or rows.shape[1] != self.llm.hidden_size:
            raise ValueError(f"rows {getattr(rows, 'shape', type(rows))}")
        if rows.dtype not in (torch.float32, torch.bfloat16, torch.float16) or not bool(rows.isfinite().all()):
            raise ValueError(f"rows of {rows.dtype}, finite: {bool(rows.isfinite().all())}")
        if len(data) > rows.numel() * rows.element_size() + 4096:
            raise ValueError(f"{len(data)} bytes for {list(rows.shape)}")
        return rows

    def _check(self, body: dict[str, Any], length: int) -> None:
        if strangers := set(body) - set(FIELDS):
            raise ValueError(f"unknown fields {strangers}")
        if wrong := [k for k, v in body.items() if type(v) is not FIELDS[k] and not (FIELDS[k] is float and v == 1)]:
            raise ValueError(f"types of {wrong}")
        if body["model"] != self.name:
            raise ValueError(f"model {body['model']}")
        ranges = {"temperature": (0, 2), "top_p": (1e-9, 1), "top_k": (-1, 1 << 30), "max_tokens": (1, self.positions)}
        for name, (low, high) in ranges.items():
            if not low <= body[name] <= high:
                raise ValueError(f"{name} {body[name]}")
        if body["min_tokens"] > body["max_tokens"] or length + body["max_tokens"] > self.positions:
            raise ValueError(f"{length} + {body['max_tokens']} tokens of {self.positions}")
        if body["repetition_penalty"] != 1 or not body["stream"] or not body["return_token_ids"]:
            raise ValueError("options that the stand-in does not have")
        salt = body.get("cache_salt", "a")  # entrypoints/generate/base/protocol.py
        if not 0 < len(salt) <= 128 or set(salt) & set("@/\\\0"):
            raise ValueError(f"cache_salt {salt}")
        if body.get("seed") == -1 or not 0 <= body.get("logprobs", 0) <= 20 or body.get("priority", 0):
            raise ValueError("seed, logprobs or priority")

    def _tokens(self, body: dict[str, Any], rows: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Token by token with its raw log-probabilities ``[vocab]``."""
        prompt = Prompt(rows[None].to(self.llm.embed(torch.tensor([0])).dtype), torch.ones(1, len(rows)).long())
        decoder, token = decoder_of(self.llm.model, prompt, True), None
        chance = torch.Generator().manual_seed(body.get("seed", 0))
        for number in range(body["max_tokens"]):
            with torch.inference_mode():
                logits = decoder.read(token)[0]
            scores = logits.clone()
            for name, bias in body.get("logit_bias", {}).items():
                scores[int(name)] += bias
            if number < body["min_tokens"]:
                scores[body["stop_token_ids"]] = -torch.inf
            if body["temperature"] == 0:
                token = scores.argmax()[None]
            else:
                token = torch.multinomial((scores / body["temperature"]).softmax(-1), 1, generator=chance)
            yield int(token), logits.log_softmax(-1)

    async def _stream(self, body: dict[str, Any], rows: torch.Tensor) -> AsyncIterator[str]:
        place, ended = len(self.written), False
        self.written.append(0)
        yield ": a comment keeps the connection alive\n\n"
        try:
            for token, logprobs in self._tokens(body, rows):
                await asyncio.sleep(self.pause)  # here a client that has left ends it
                if self.dies_after is not None and self.written[place] == self.dies_after:
                    raise ConnectionError("the engine died")
                self.written[place] += 1
                stop = token in body["stop_token_ids"] and self.written[place] > body["min_tokens"]
                last = self.written[place] == body["max_tokens"]
                choice: dict[str, Any] = {"index": 0, "text": f"<{token}>", "token_ids": [token]}
                if "logprobs" in body:
                    choice["logprobs"] = _listed(token, logprobs, body["logprobs"])
                if stop or last:
                    choice["finish_reason"] = "stop" if stop else "length"
                ended = ended or stop or last
                yield _event({"choices": [choice]})
                if stop:
                    break
            usage = {"prompt_tokens": len(rows), "completion_tokens": self.written[place]}
            yield _event({"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": 3}}})
            yield "data: [DONE]\n\n"
        finally:
            self.hung_up += not ended


def _listed(token: int, logprobs: torch.Tensor, count: int) -> dict[str, Any]:
    named = {f"token_id:{token}": float(logprobs[token])}
    best = logprobs.topk(count)
    named |= {f"token_id:{int(i)}": float(p) for p, i in zip(best.values, best.indices, strict=True)}
    return {
        "tokens": [f"token_id:{token}"], "token_logprobs": [float(logprobs[token])], "top_logprobs": [named],
        "text_offset": [0],
    }  # fmt: skip


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps({'id': 'cmpl-1', 'object': 'text_completion', **value})}\n\n"


def error(message: str, status: int) -> JSONResponse:
    """An error as vLLM words it."""
    body = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": body}, status)


@contextmanager
def running(stand_in: StandIn) -> Iterator[str]:
    """The address of the server while it runs."""
    server = uvicorn.Server(uvicorn.Config(stand_in.app, "127.0.0.1", 0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)
