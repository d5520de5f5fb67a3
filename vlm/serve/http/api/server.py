"""What the endpoints share: the models, the limits, and the answers that are being written for a request."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import Request

from vlm.common.errors import BusyError, DataError, PromptError, UserError
from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.constraints.json_schema import Vocabulary
from vlm.inference.streaming import StreamedText
from vlm.serve.http.api.media import Fetcher, fetch_all
from vlm.serve.http.api.requests import ChatMessage
from vlm.serve.http.api.turns import FairThreads
from vlm.serve.http.errors import ApiError, api_error
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models

if TYPE_CHECKING:
    from vlm.common.types import Example, Message
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation

log = logging.getLogger(__name__)

PREPARING = max(2, min(8, os.cpu_count() or 2))
"""Requests of a server whose images are decoded and encoded at the same time."""

FETCHING = 60.0
"""Seconds for everything that one request has fetched, one after another."""

CANCELLED_SECONDS = 30.0
"""How long an answer that nobody reads may take to end until it is no longer waited for."""


class Observer(Protocol):
    """Who is told of answers, for statistics."""

    def answered(self, model: str, tenant: str, answer: Answer) -> None:
        """Called once for each answer in the event loop, when it has ended, be it with an error (``answer.error``)."""
        ...


@dataclasses.dataclass
class Question:
    """One prompt with the options of each answer to it."""

    prompt: Example | list[Message]
    generations: list[Generation]
    schema: dict[str, Any] | None = None
    logprobs: int | None = None


class Server:
    """The models and limits of an app, and what is prepared for them right now."""

    def __init__(
        self, models: Models, limits: Limits, fetcher: Fetcher | None, observer: Observer | None, tenants: int = 1
    ) -> None:
        self.models, self.limits, self.fetcher, self.observer = models, limits, fetcher, observer
        self.tenants = tenants
        self.started = int(time.time())
        self._vocabularies: dict[int, Vocabulary] = {}
        self._longest: dict[int, int] = {}
        self._lock = threading.Lock()
        self._threads = FairThreads(PREPARING, "prompts")
        self._open: Counter[tuple[str, str]] = Counter()
        self._preparing: Counter[str] = Counter()
        self._ending: set[asyncio.Task[None]] = set()

    def engine(self, name: str | None) -> tuple[str, Engine]:
        """A model by name, the first without one.

        A server that is about to stop refuses requests when they arrive (see :class:`vlm.serve.http.drain.Drain`);
        one whose body was still on its way then is answered.

        Raises ApiError: there is none of that name (404), or none at all yet (503).
        """
        known = self.models.engines
        if not known:
            raise ApiError("this server has no model yet", status=503, code="loading", retry_after=5)
        found = self.models.first if name is None else name
        if found not in known:
            names = ", ".join(sorted(known))
            text = f"the model {found[:200]!r} does not exist; there are: {names}"
            raise ApiError(text, status=404, code="model_not_found", param="model")
        return found, known[found]

    async def fetch(self, messages: Sequence[ChatMessage]) -> dict[str, bytes]:
        """See :func:`.media.fetch_all`. Raises ApiError: that, or it takes longer than ``FETCHING`` seconds."""
        seconds = min(FETCHING, self.limits.seconds)
        try:
            return await asyncio.wait_for(fetch_all(messages, self.limits, self.fetcher), seconds)
        except asyncio.TimeoutError:
            text = f"the images and videos of the request were not fetched within {seconds:g} seconds"
            raise ApiError(text, param="messages") from None

    def vocabulary(self, engine: Engine) -> Vocabulary:
        """What constraints of an engine are made from, made once."""
        with self._lock:
            if id(engine) not in self._vocabularies:
                self._vocabularies[id(engine)] = Vocabulary.of(engine)
            return self._vocabularies[id(engine)]

    def longest_token(self, engine: Engine) -> int:
        """Bytes of the longest token of an engine, counted once."""
        with self._lock:
            if id(engine) not in self._longest:
                tokenizer = engine.processor.tokenizer
                self._longest[id(engine)] = max(len(tokenizer.bytes_of(i)) for i in range(tokenizer.vocab_size))
            return self._longest[id(engine)]

    def _check_queue(self, name: str, engine: Engine, tenant: str) -> None:
        """Raises BusyError: as many questions wait as may, or half of them and as many are the tenant's."""
        waiting, most = engine.stats().waiting + max(0, self._preparing[name] - PREPARING), max(1, self.limits.waiting)
        if waiting >= most:
            raise BusyError(f"{waiting} questions are waiting for this model", retry_after=1.0)
        share = max(1, most // 2)
        if self.tenants > 1 and waiting >= share and self._open[name, tenant] >= share:
            raise BusyError(f"{share} questions of this API key are open", retry_after=1.0)

    async def ask(
        self, request: Request, name: str, engine: Engine, prepare: Callable[[], Sequence[Question]], param: str
    ) -> Answers:
        """Prepare the questions in a thread, and have their answers written.

        Args:
            request: whose client may go away meanwhile.
            name: of the model.
            engine: the model.
            prepare: makes the questions; slow.
            param: the field at fault where a prompt cannot be used.

        Raises:
            BusyError: too many questions wait.
            ApiError, UserError: what ``prepare`` and ``Engine.submit`` raise.
        """
        tenant = tenant_of(request)
        self._check_queue(name, engine, tenant)
        answers = Answers(self, name, tenant)
        deadline = time.monotonic() + self.limits.seconds

        def begin() -> None:
            for question in prepare():
                answers.per_prompt = len(question.generations)
                for generation in question.generations:
                    answers.begin(engine, question, generation, deadline)

        self._preparing[name] += 1
        self._open[name, tenant] += 1
        begun = False
        try:
            await asyncio.wait_for(self._threads.run(tenant, begin), self.limits.seconds)
            begun = True
        except asyncio.TimeoutError:
            raise ApiError("no time was left to begin the answer", status=503, code="timeout", retry_after=5) from None
        except (DataError, PromptError) as error:
            raise api_error(error, param) from None
        finally:
            self._preparing[name] -= 1
            if not begun:
                answers.close()
        return answers

    async def in_thread(self, request: Request, work: Callable[[], Any]) -> Any:
        """``work()`` in one of the threads that prepare prompts."""
        return await self._threads.run(tenant_of(request), work)

    def closed(self, name: str, tenant: str) -> None:
        """A request whose answers are closed no longer counts."""
        self._open[name, tenant] -= 1
        if not self._open[name, tenant]:
            del self._open[name, tenant]

    def ended(self, name: str, tenant: str, answer: Answer) -> None:
        """Tell the observer of an answer when it has ended, at the latest soon after it was cancelled."""
        if self.observer is None:
            return
        if answer.is_over:
            self.observer.answered(name, tenant, answer)
            return
        task = asyncio.ensure_future(self._wait(name, tenant, answer))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _wait(self, name: str, tenant: str, answer: Answer) -> None:
        end = time.monotonic() + CANCELLED_SECONDS
        while not answer.is_over and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if answer.is_over and self.observer is not None:
            self.observer.answered(name, tenant, answer)


class Answers:
    """The answers to one request, in the order of its choices; leaving ``with`` cancels those that are not over.

    Attributes:
        id: of the response.
        created: seconds since 1970.
        per_prompt: answers to each prompt.
    """

    def __init__(self, server: Server, name: str, tenant: str) -> None:
        self.id = uuid.uuid4().hex
        self.created = int(time.time())
        self.name, self.tenant = name, tenant
        self.items: list[Answer] = []
        self.per_prompt = 1
        self._server = server
        self._lock = threading.Lock()
        self._closed = False

    def begin(self, engine: Engine, question: Question, generation: Generation, deadline: float) -> None:
        """Have one more answer written, unless nobody wants it any more; in any thread."""
        if self._closed:
            return
        constraint = None
        if question.schema is not None:
            try:
                constraint = self._server.vocabulary(engine).constraint(question.schema)
            except PromptError as error:
                raise api_error(error, "response_format") from None
        left = max(0.001, deadline - time.monotonic())
        asking = Asking(tenant=self.tenant, timeout=left, logprobs=question.logprobs, constraint=constraint)
        answer = engine.submit(question.prompt, generation, asking)
        with self._lock:
            self.items.append(answer)
            if self._closed:
                answer.cancel()

    def close(self) -> None:
        """Cancel what is not over, and count all; in the event loop."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._server.closed(self.name, self.tenant)
        for answer in self.items:
            if not answer.is_over:
                answer.cancel()
            self._server.ended(self.name, self.tenant, answer)

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    async def pieces(self) -> AsyncGenerator[tuple[int, StreamedText | None], None]:
        """(index of the answer, its next piece) of all answers as they come; None at the end of one.

        Raises ApiError: one of them ended with an error.
        """
        came: asyncio.Queue[tuple[int, StreamedText | None]] = asyncio.Queue()

        async def read(index: int, answer: Answer) -> None:
            try:
                async for piece in answer:
                    came.put_nowait((index, piece))
            finally:
                came.put_nowait((index, None))

        readers = [asyncio.ensure_future(read(k, answer)) for k, answer in enumerate(self.items)]
        try:
            left = len(readers)
            while left:
                index, piece = await came.get()
                error = self.items[index].error
                if piece is None and error is not None:
                    if not isinstance(error, UserError):
                        log.error("an answer ended with an error", exc_info=error)
                    raise api_error(error)
                left -= piece is None
                yield index, piece
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def finish(self) -> list[Answer]:
        """All answers, when they are over.

        Raises ApiError: one of them ended with an error, or the time was over before its first token.
        """
        async for _ in self.pieces():
            pass
        for answer in self.items:
            check_begun(answer)
        return self.items

    def usage(self) -> dict[str, Any]:
        """Tokens so far: a prompt counts once however many answers it has, visual tokens included."""
        prompts = [answer.usage for answer in self.items[:: self.per_prompt]]
        prompt, written = sum(u.prompt for u in prompts), sum(answer.usage.written for answer in self.items)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": sum(u.cached for u in prompts)},
        }


def check_begun(answer: Answer) -> None:
    """Raises ApiError: no time was left to begin this answer."""
    if answer.finish == "timeout" and not answer.ids:
        raise ApiError("no time was left to begin the answer", status=503, code="timeout", retry_after=5)


def finish_of(answer: Answer) -> str:
    """``stop``, or ``length`` for an answer that ends before its time: as long as allowed, or out of time."""
    return "stop" if answer.finish == "stop" else "length"


def tenant_of(request: Request) -> str:
    """Whose request it is, as the check of API keys has found out."""
    return str(request.scope.get("state", {}).get("tenant", ""))
