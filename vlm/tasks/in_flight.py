"""Many questions at a time: when an answer ends, the next question takes its place."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING

from vlm.common.errors import BusyError, DataError, NotFiniteError, PromptError
from vlm.common.types import Example
from vlm.inference.context import turns_of
from vlm.processors.messages import to_messages

if TYPE_CHECKING:
    from vlm.inference.batching.answer import Answer
    from vlm.inference.engine import Conversation, Engine
    from vlm.inference.generation import Generation
    from vlm.tasks.answers import Question

AHEAD = 4
"""Questions whose images are decoded while those before them are answered."""


class InFlight:
    """Asks an engine; as many questions as given are answered at a time, so that a long answer holds up no other."""

    def __init__(self, engine: Engine, generation: Generation, at_once: int) -> None:
        """``at_once``: answers that are written at a time; a few more questions are prepared meanwhile."""
        self.engine, self.generation, self.at_once = engine, generation, at_once
        self._room = threading.BoundedSemaphore(at_once)
        self._running: set[Answer] = set()
        self._over = threading.Event()

    def answers(self, questions: Mapping[str, Question]) -> Iterator[dict[str, str | DataError | PromptError]]:
        """Key -> text, or why the question cannot be asked, in groups, in the order in which they end.

        Raises whatever else ends an answer, after those that ended before it.
        """
        left, workers = iter(questions.items()), self.at_once + AHEAD
        pending: dict[Future[str | DataError | PromptError], str] = {}
        with ThreadPoolExecutor(workers, "vlm-answers") as pool:
            try:
                while True:
                    for key, question in islice(left, workers - len(pending)):
                        pending[pool.submit(self._answer, question)] = key
                    if not pending:
                        return
                    done = wait(pending, return_when=FIRST_COMPLETED).done
                    failed = [f for f in done if f.exception() is not None]
                    if group := {pending.pop(f): f.result() for f in done if f not in failed}:
                        yield group
                    for future in failed:
                        future.result()
            finally:
                self._over.set()
                for future in pending:
                    future.cancel()
                for answer in list(self._running):
                    answer.cancel()

    def _answer(self, question: Question) -> str | DataError | PromptError:
        try:
            asked = self._prepared(question())
            with self._room:
                answer = self._submit(asked)
                self._running.add(answer)
                try:
                    if self._over.is_set():
                        answer.cancel()
                    return answer.result()
                except NotFiniteError:
                    self.engine.generate([asked], self.generation)  # which names the part
                    raise
                finally:
                    self._running.discard(answer)
        except (DataError, PromptError) as error:
            return error

    def _prepared(self, conversation: Conversation) -> Conversation:
        """The question with its images decoded, unless old turns may have to be dropped for it to fit."""
        messages = to_messages(conversation, allow_urls=self.engine.allow_urls)
        if isinstance(messages, Example) or len(turns_of(messages)[1]) > 1:
            return messages
        return self.engine.examples([messages])[0]

    def _submit(self, asked: Conversation) -> Answer:
        while True:
            try:
                return self.engine.submit(asked, self.generation)
            except BusyError as error:
                if self._over.wait(error.retry_after):
                    raise
