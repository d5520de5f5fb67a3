"""Bodies of responses of both completion endpoints, whole and in chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse

from vlm.inference.streaming import StreamedText, extend
from vlm.serve.http.api import logprobs
from vlm.serve.http.api.connection import EventStream
from vlm.serve.http.api.requests import ChatRequest, CompletionRequest
from vlm.serve.http.api.server import Answers, check_begun, finish_of

if TYPE_CHECKING:
    from vlm.processors.tokenizer.tokenizer import Tokenizer


class Reply:
    """How one endpoint writes answers.

    A chunk whose text begins again, because the template's clean-up threw away what was sent (a model that writes
    another ``Assistant:``), has ``"restart": true`` in its choice.
    """

    def __init__(self, answers: Answers, request: ChatRequest | CompletionRequest, tokenizer: Tokenizer) -> None:
        self.answers, self._request, self._tokenizer = answers, request, tokenizer
        self._is_chat = isinstance(request, ChatRequest)
        asked = request.logprobs
        self._logprobs = asked is not None and asked is not False
        count = len(answers.items)
        self._shown = [logprobs.Shown(answer, tokenizer) for answer in answers.items]
        self._texts, self._offsets = [""] * count, [0] * count

    async def whole(self) -> JSONResponse:
        """The response when all answers are over."""
        with self.answers:
            choices = []
            for index, answer in enumerate(await self.answers.finish()):
                text = answer.text
                choice: dict[str, Any] = {"index": index, "finish_reason": finish_of(answer)}
                choice |= {"logprobs": self._found(index, text, True)}
                choices.append(choice | self._content(text))
            return JSONResponse({**self._head(False), "choices": choices, "usage": self.answers.usage()})

    def stream(self) -> EventStream:
        """The response in events."""
        return EventStream(self._events(), self.answers)

    async def _events(self) -> AsyncGenerator[dict[str, Any], None]:
        options = self._request.stream_options
        tells = options is not None and bool(options.include_usage)
        head = self._head(True) | ({"usage": None} if tells else {})
        for index in range(len(self.answers.items) if self._is_chat else 0):
            yield head | {"choices": [self._chunk(index, {"delta": {"role": "assistant", "content": ""}})]}
        async with aclosing(self.answers.pieces()) as pieces:
            async for index, piece in pieces:
                yield head | {"choices": [self._last(index) if piece is None else self._piece(index, piece)]}
        if tells:
            yield head | {"choices": [], "usage": self.answers.usage()}

    def _piece(self, index: int, piece: StreamedText) -> dict[str, Any]:
        self._texts[index] = extend(self._texts[index], piece)
        found = self._found(index, self._texts[index], False)
        content = {"delta": {"content": str(piece)}} if self._is_chat else {"text": str(piece)}
        return self._chunk(index, content, found) | ({"restart": True} if piece.is_restart else {})

    def _last(self, index: int) -> dict[str, Any]:
        answer = self.answers.items[index]
        check_begun(answer)
        content: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        return self._chunk(index, content, self._found(index, self._texts[index], True), finish_of(answer))

    @staticmethod
    def _chunk(
        index: int, content: dict[str, Any], found: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": found, "finish_reason": finish}

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}} if self._is_chat else {"text": text}

    def _head(self, in_chunks: bool) -> dict[str, Any]:
        kind, prefix = ("chat.completion", "chatcmpl") if self._is_chat else ("text_completion", "cmpl")
        return {
            "id": f"{prefix}-{self.answers.id}",
            "object": f"{kind}.chunk" if in_chunks and self._is_chat else kind,
            "created": self.answers.created,
            "model": self.answers.name,
            "system_fingerprint": None,
        }

    def _found(self, index: int, text: str, is_whole: bool) -> dict[str, Any] | None:
        """The log-probabilities of what ``text`` shows in addition to what was told, if they are wanted."""
        if not self._logprobs:
            return None
        tokens = self._shown[index].take(text, is_whole)
        if self._is_chat:
            return logprobs.for_chat(tokens, self._tokenizer)
        found, self._offsets[index] = logprobs.for_completion(tokens, self._tokenizer, self._offsets[index])
        return found
