"""Many questions at a time: when answers end, the next questions take their places."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

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
"""Questions at least whose images are decoded while those before them are answered."""
MOST_TOGETHER = 32
"""Questions at most whose images are encoded together."""


class InFlight:
    """Asks an engine; as many questions as given are answered at a time, so that a long answer holds up no other."""

    def __init__(self, engine: Engine, generation: Generation, at_once: int) -> None:
        """``at_once``: answers that are written at a time; a few more questions are prepared meanwhile."""
        self.engine, self.generation = engine, generation
        self.group = max(1, min(at_once // 4, MOST_TOGETHER))
        self.workers = at_once + max(AHEAD, self.group)
        self._door = _Door(engine, generation, at_once, self.group)

    def answers(self, questions: Mapping[str, Question]) -> Generator[dict[str, str | DataError | PromptError]]:
        """Key -> text, or why the question cannot be asked, in groups, in the order in which they end.

        Raises whatever else ends an answer, after those that ended before it.
        """
        left = iter(questions.items())
        pending: dict[Future[str | DataError | PromptError], str] = {}
        with ThreadPoolExecutor(self.workers, "vlm-answers") as pool:
            try:
                while True:
                    coming = list(islice(left, self.workers - len(pending)))
                    self._door.expect(len(coming))
                    pending |= {pool.submit(self._answer, question): key for key, question in coming}
                    if not pending:
                        return
                    done = wait(pending, return_when=FIRST_COMPLETED).done
                    failed = [f for f in done if f.exception() is not None]
                    if group := {pending.pop(f): f.result() for f in done if f not in failed}:
                        yield group
                    for future in failed:
                        future.result()
            finally:
                for future in pending:
                    future.cancel()
                self._door.close()

    def _answer(self, question: Question) -> str | DataError | PromptError:
        asked: Conversation | None = None
        try:
            try:
                asked = self._prepared(question())
            finally:
                place = self._door.arrive(asked)
            answer = place.result()
            try:
                return answer.result()
            except NotFiniteError:
                self.engine.generate([asked], self.generation)  # which names the part
                raise
            finally:
                self._door.leave(answer)
        except (DataError, PromptError) as error:
            return error

    def _prepared(self, conversation: Conversation) -> Conversation:
        """The question with its images decoded, unless old turns may have to be dropped for it to fit."""
        messages = to_messages(conversation, allow_urls=self.engine.allow_urls)
        if isinstance(messages, Example) or len(turns_of(messages)[1]) > 1:
            return messages
        return self.engine.examples([messages])[0]


class _Door:
    """Where prepared questions wait until a group of them is asked together.

    A group is asked when it is complete, or when nobody who is expected is missing.
    """

    def __init__(self, engine: Engine, generation: Generation, at_once: int, group: int) -> None:
        self.engine, self.generation, self.group = engine, generation, group
        self._room, self._expected = at_once, 0
        self._waiting: list[_Place] = []
        self._running: set[Answer] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._asker = ThreadPoolExecutor(1, "vlm-asks")

    def expect(self, count: int) -> None:
        """So many will arrive."""
        with self._lock:
            self._expected += count

    def arrive(self, asked: Conversation | None) -> Future[Answer]:
        """A question is prepared (None: it cannot be); its answer, or why it has none, once it was asked."""
        place = _Place(asked)
        with self._lock:
            self._expected -= 1
            if asked is not None:
                self._waiting.append(place)
            self._let_in()
        return place.answer

    def leave(self, answer: Answer | None = None) -> None:
        """An answer is over, or will not be written."""
        with self._lock:
            if answer is not None:
                self._running.discard(answer)
            self._room += 1
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting and not self._turned_away():
            count = min(self._room, self.group, len(self._waiting))
            if count < self.group and (self._expected or count < len(self._waiting)):
                return
            group, self._waiting = self._waiting[:count], self._waiting[count:]
            self._room -= count
            asking = self._asker.submit(self._ask, group)
            asking.add_done_callback(partial(_fail, group))

    def _ask(self, group: Sequence[_Place]) -> None:
        """Ask a group; one that is refused is halved, until those that cannot be asked are alone."""
        try:
            answers = self.engine.submit_all([place.asked for place in group], self.generation)
        except BusyError as error:
            if len(group) == 1:
                if self._over.wait(error.retry_after):
                    raise
                return self._ask(group)
        except (DataError, PromptError) as error:
            if len(group) == 1:
                self.leave()
                group[0].answer.set_exception(error)
                return None
        else:
            self._give(group, answers)
            return None
        self._ask(group[: len(group) // 2])
        return self._ask(group[len(group) // 2 :])

    def _give(self, group: Sequence[_Place], answers: Sequence[Answer]) -> None:
        with self._lock:
            self._running.update(answers)
        for place, answer in zip(group, answers, strict=True):
            place.answer.set_result(answer)
        if self._over.is_set():
            self._cancel()

    def close(self) -> None:
        """Nobody wants an answer any more: end those that are written, and let nobody wait."""
        self._over.set()
        with self._lock:
            self._turned_away()
        self._cancel()
        self._asker.shutdown()

    def _turned_away(self) -> bool:
        """After the end, let nobody wait."""
        if self._over.is_set():
            for place in self._waiting:
                place.answer.set_exception(BusyError("no more answers are wanted"))
            self._waiting = []
        return self._over.is_set()

    def _cancel(self) -> None:
        with self._lock:
            running = list(self._running)
        for answer in running:
            answer.cancel()


class _Place:
    """A prepared question, and its answer once it was asked."""

    def __init__(self, asked: Any) -> None:
        self.asked = asked
        self.answer: Future[Answer] = Future()


def _fail(group: Sequence[_Place], asking: Future[None]) -> None:
    """Whatever ended the asking of a group is told to all of it who have no answer."""
    error = asking.exception()
    for place in group if error is not None else ():
        if not place.answer.done():
            place.answer.set_exception(error)
