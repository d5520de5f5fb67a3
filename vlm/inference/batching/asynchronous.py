"""The engine in programs built on asyncio: no call blocks the loop, and a cancelled task writes no further."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import TYPE_CHECKING, Any, cast

from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.streaming import StreamedText, join
from vlm.processors.messages import to_messages

if TYPE_CHECKING:
    from vlm.inference.generation import Generation
    from vlm.processors.messages import Conversation


async def asked(submit: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
    """``submit(...)`` in a thread, because it encodes images; if the task is cancelled meanwhile, so is the answer."""
    left = threading.Event()
    made: list[Answer] = []

    def work() -> Answer:
        answer = submit(*args, **options)
        made.append(answer)
        if left.is_set():
            _end(answer)
        return answer

    given = False
    try:
        answer = await asyncio.to_thread(work)
        given = True
    finally:
        if not given:  # the thread goes on; whichever of the two comes second ends the answer
            left.set()
            for answer in made:
                threading.Thread(target=_end, args=(answer,), daemon=True).start()
    return answer


def _end(answer: Answer) -> None:
    """Cancel an answer that nobody will read, and wait until it is out of the queue."""
    answer.cancel()
    with contextlib.suppress(Exception):  # whatever it was, nobody is told
        answer.result()


async def pieces(answer: Answer) -> AsyncGenerator[StreamedText, None]:
    """The pieces of an answer; closing this cancels the answer at once."""
    async with aclosing(cast("AsyncGenerator[StreamedText, None]", aiter(answer))) as stream:
        async for piece in stream:
            yield piece


class AsyncAnswers:
    """``await`` and ``async for`` of an engine, by its :meth:`submit`."""

    allow_urls: bool

    if TYPE_CHECKING:

        def submit(
            self,
            messages: Conversation,
            generation: Generation | None = None,
            asking: Asking | None = None,
            *,
            image: Any = None,
            video: Any = None,
            **options: Any,
        ) -> Answer:
            """Of the engine, as those below."""
            ...

        def options(self, generation: Generation | None = None, **changes: Any) -> Generation:
            """The defaults with changes."""
            ...

        def generate(
            self, conversations: Sequence[Conversation], generation: Generation | None = None, batch_size: int = 16
        ) -> list[str]:
            """The answers to a list."""
            ...

        def _naming_part(self, conversations: Sequence[Conversation]) -> AbstractContextManager[None]: ...

    async def asubmit(
        self,
        messages: Conversation,
        generation: Generation | None = None,
        asking: Asking | None = None,
        *,
        image: Any = None,
        video: Any = None,
        **options: Any,
    ) -> Answer:
        """What ``Engine.submit`` does, without blocking the loop while images are encoded."""
        return await asked(self.submit, messages, generation, asking, image=image, video=video, **options)

    async def astream(
        self,
        messages: Conversation,
        generation: Generation | None = None,
        *,
        image: Any = None,
        video: Any = None,
        asking: Asking | None = None,
        **options: Any,
    ) -> AsyncGenerator[StreamedText, None]:
        """``Engine.stream`` for ``async for``; leaving the loop, or cancelling the task, ends the answer.

        Raises:
            PromptError, DataError, UserError: see ``Engine.chat``.
            BusyError: too many questions are waiting.
        """
        generation = self.options(generation, **options)
        read = await asyncio.to_thread(to_messages, messages, image, video, allow_urls=self.allow_urls)
        if generation.num_beams > 1:
            yield StreamedText((await asyncio.to_thread(self.generate, [read], generation))[0])
            return
        with self._naming_part([read]):
            async with aclosing(pieces(await self.asubmit(read, generation, asking))) as stream:
                async for piece in stream:
                    yield piece

    async def achat(
        self,
        question: Conversation,
        image: Any = None,
        video: Any = None,
        *,
        generation: Generation | None = None,
        asking: Asking | None = None,
        **options: Any,
    ) -> str:
        """``Engine.chat`` for ``await``. Raises: see :meth:`astream`."""
        stream = self.astream(question, generation, image=image, video=video, asking=asking, **options)
        async with aclosing(stream):
            return join([piece async for piece in stream])

    async def agenerate(
        self,
        conversations: Sequence[Conversation],
        generation: Generation | None = None,
        batch_size: int = 16,
        *,
        asking: Asking | None = None,
        **options: Any,
    ) -> list[str]:
        """The answers to a list, in its order; at most ``batch_size`` of them are asked for at a time.

        Raises: see :meth:`astream`; the other answers are cancelled then.
        """
        generation = self.options(generation, **options)
        free = asyncio.Semaphore(batch_size)

        async def one(conversation: Conversation) -> str:
            async with free:
                return await self.achat(conversation, generation=generation, asking=asking)

        tasks = [asyncio.ensure_future(one(conversation)) for conversation in conversations]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
