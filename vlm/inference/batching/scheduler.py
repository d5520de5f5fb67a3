"""Writes the answers of many threads and tasks together.

A step: encode media that wait, end what is cancelled or late, let waiting questions begin, write one token (or, with
``lookup``, several) of every answer, read a part of the prompts. Who takes it: :mod:`vlm.inference.batching.turns`.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm.common.errors import BusyError
from vlm.inference.batching.alone import LoneRows
from vlm.inference.batching.answer import Finish
from vlm.inference.batching.choosing import Choice, Chooser
from vlm.inference.batching.lookup import guess
from vlm.inference.batching.row import Noted, Row
from vlm.inference.batching.shared import SharedRows
from vlm.inference.batching.stats import Stats
from vlm.inference.batching.turns import CHECK, Turns
from vlm.models.precision import no_autocast

if TYPE_CHECKING:
    from vlm.config.run import Serving
    from vlm.models.vlm import VLM

log = logging.getLogger(__name__)

_MADE: weakref.WeakSet[Scheduler] = weakref.WeakSet()
"""Those that may have a thread, which must not compute while the interpreter ends."""


@atexit.register
def _close_all() -> None:
    for scheduler in list(_MADE):
        scheduler.close()


PAUSE = 0.001
"""Seconds between two times that a reader is told of new tokens, times the answers being written.

Threads that wake up for every token of every answer take the interpreter from the one that writes.
"""


class Scheduler(Turns):
    """The engine room of one model.

    Attributes:
        stats: counts; ``running`` and ``waiting`` among them.
    """

    def __init__(self, model: VLM, serving: Serving, shared: SharedRows | None, stats: Stats) -> None:
        """``shared``: what reads rows together, where the language model allows it."""
        super().__init__(model)
        _MADE.add(self)
        self.serving = serving
        self.stats = stats
        self.shared = shared
        self.lone = LoneRows(model, serving.max_batch, stats)
        self.chooser = Chooser()
        self._waiting: list[tuple[int, int, int, Row]] = []
        self._turn = 0
        self._turns: dict[str, int] = {}
        self._beginning: list[Row] = []
        self._number = itertools.count()
        self._look = 0.0  # when the waiting questions are looked at again
        self._failing = _Failing(self._fail_all, shared)

    # ---- asking

    def check_queue(self) -> None:
        """Raises BusyError: as many questions wait as may."""
        limit, waiting = self.serving.queue, len(self._waiting)
        if limit and waiting >= limit:
            waiting = self._without_unwanted()
        if limit and waiting >= limit:
            raise BusyError(
                f"{waiting} questions are waiting, and no more than {limit} may (run.serving.queue)",
                retry_after=self._seconds_of(waiting),
                fix="ask again later",
            )

    def _without_unwanted(self) -> int:
        """End the waiting questions that nobody wants answered any more; how many are left."""
        with self._lock:
            ended = [(row, reason) for *_, row in self._waiting if (reason := row.over()) is not None]
            if ended:
                gone = {id(row) for row, _ in ended}
                self._waiting = [entry for entry in self._waiting if id(entry[-1]) not in gone]
                heapq.heapify(self._waiting)
            for row, reason in ended:
                self._count(row, reason)
            return len(self._waiting)

    def _seconds_of(self, waiting: int) -> float:
        """About how long so many questions take: from 1 second to a minute."""
        return min(60.0, max(1.0, self._pace * waiting / self.serving.max_batch))

    _pace = 1.0
    """Seconds of an answer, a moving mean."""

    def add(self, row: Row) -> None:
        """Let a row wait for its turn; one with a higher priority comes first, and tenants take turns.

        Raises BusyError.
        """
        self.check_queue()
        with self._lock:
            row.number = next(self._number)
            tenant = row.asking.tenant
            if not self._waiting:
                self._turns.clear()
            turn = max(self._turn, self._turns.get(tenant, -1) + 1)
            self._turns[tenant] = turn
            heapq.heappush(self._waiting, (-row.asking.priority, turn, row.number, row))
            self.stats.asked += 1
            self.stats.prompt_tokens += row.length

    # ---- who takes the steps (see ``Turns``)

    def settle(self) -> None:
        """End what is cancelled or late; what is being written, only if no other thread is about to."""
        if not self._steps.acquire(blocking=False):
            self._without_unwanted()
            return
        try:
            with self._failing, torch.inference_mode():
                self._end_unwanted()
            self._without_unwanted()
            self._count_rows()
        finally:
            self._steps.release()

    def _count_rows(self) -> None:
        self.stats.running = len(self._rows())
        self.stats.waiting = len(self._waiting)

    def close(self) -> None:
        """Cancel everything, and wait until the thread in the background, if any, has ended."""
        with self._lock:
            rows = [*self._rows(), *(row for *_, row in self._waiting)]
            thread = self._background
        for row in rows:
            row.answer.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _is_idle(self) -> bool:
        return not (self._media or self._waiting or self._beginning or self._rows())  # in the order in which they move

    def _held_up(self) -> int:
        return len(self._rows())

    def _left(self) -> None:
        self.settle()

    def _give_up(self, error: Exception) -> None:
        """End every answer with an error, whatever state the rows are in: nobody may wait for this thread in vain."""
        log.error("the thread that writes answers met an error, which ends them all", exc_info=error)
        with self._steps, self._lock:
            rows = list(dict.fromkeys([*self._rows(), *self._beginning, *(row for *_, row in self._waiting)]))
            self._waiting, self._beginning, self.lone.rows = [], [], []
            if self.shared is not None:
                self.shared.drop()
        for row in rows:
            self.stats.failed += 1
            row.answer.fail(error)

    def _rows(self) -> list[Row]:
        return [*(self.shared.rows if self.shared else ()), *self.lone.rows]

    # ---- a step

    def _step(self) -> None:
        """One step of all rows; an error ends every answer that was being written, and is raised where it is read."""
        self._encode()
        with self._failing, torch.inference_mode(), no_autocast(self.model.device):
            self._end_unwanted()
            if (now := time.monotonic()) > self._look:
                self._without_unwanted()
                self._look = now + CHECK
            self._admit()
            self._read_and_write()
        self._count_rows()

    def _fail_all(self, error: Exception) -> None:
        rows = list(dict.fromkeys([*(self.shared.drop() if self.shared else ()), *self.lone.rows, *self._beginning]))
        self.lone.rows, self._beginning = [], []
        for row in rows:
            self.chooser.end(row)
            self.stats.failed += 1
            row.answer.fail(error)

    def _end_unwanted(self) -> None:
        for row in self._rows():
            if (reason := row.over()) is not None:
                self._end(row, reason)

    def _admit(self) -> None:
        while True:
            with self._lock:
                while self._waiting and (reason := self._waiting[0][-1].over()) is not None:
                    self._count(heapq.heappop(self._waiting)[-1], reason)
                if not self._waiting:
                    return
                row = self._waiting[0][-1]
                shared = self.shared if row.generation.use_cache else None
                if not (self.lone.fits() if shared is None else shared.fits(row)):
                    return
                self._turn = max(self._turn, self._waiting[0][1])
                self._beginning = [heapq.heappop(self._waiting)[-1]]  # under the lock: it is never nowhere
            self.chooser.begin(row)
            (self.lone if shared is None else shared).begin(row)
            self._beginning = []

    def _read_and_write(self) -> None:
        shared = self.shared
        if shared is not None and shared.rows:
            if shared.writing:
                self._write(shared)
            begun = shared.read(self.serving.prefill)
            self._take([(row, self.chooser.choose([row], logits[None])) for row, logits in begun])
        for row in list(self.lone.rows):
            self._take([(row, self.chooser.choose([row], self.lone.step(row)))])

    def _write(self, shared: SharedRows) -> None:
        rows = shared.rows[: shared.writing]
        guesses = [guess(row, self.serving.lookup) for row in rows]
        logits = shared.write(guesses)
        if not any(guesses):
            choices = self.chooser.choose(rows, _stacked(logits))
            self._take([(row, [choice]) for row, choice in zip(rows, choices, strict=True)])
        else:
            each = zip(rows, guesses, logits, strict=True)
            self._take([(row, self._agreed(row, guessed, own)) for row, guessed, own in each])

    def _agreed(self, row: Row, guessed: Sequence[int], logits: Tensor) -> list[Choice]:
        """The tokens that the model writes: as many guesses as were right, and the one after them."""
        choices: list[Choice] = []
        for number, scores in enumerate(logits):
            choices += self.chooser.choose([row], scores[None])
            if number == len(guessed) or choices[-1].token != guessed[number]:
                break
        self.stats.guessed += len(guessed)
        self.stats.guessed_right += len(choices) - 1
        return choices

    def _take(self, chosen: Sequence[tuple[Row, Sequence[Choice]]]) -> None:
        """Add what was chosen to the answers, then end those that are over (which moves other rows)."""
        over = [(row, reason) for row, choices in chosen if (reason := self._add(row, choices)) is not None]
        for row, reason in over:
            if isinstance(reason, Exception):
                self._remove(row)
                self.stats.failed += 1
                row.answer.fail(reason)
            else:
                self._end(row, reason)

    def _add(self, row: Row, choices: Sequence[Choice]) -> Finish | Exception | None:
        """Add tokens to an answer; why it is over, if it is."""
        row.answer.pause = PAUSE * self.stats.running
        for choice in choices:
            if choice.error is not None:
                return choice.error
            if choice.token is None:
                return "stop"
            self.stats.written_tokens += 1
            reason: Finish | None = None
            with Noted() as noted:
                reason = row.add(choice.token, choice.logprob)
            if noted.error is not None or reason is not None:
                return noted.error or reason
        return None

    def _end(self, row: Row, reason: Finish) -> None:
        self._remove(row)
        self._count(row, reason)

    def _count(self, row: Row, reason: Finish) -> None:
        name = {"stop": "stopped", "length": "at_length", "cancelled": "cancelled", "timeout": "timed_out"}[reason]
        vars(self.stats)[name] += 1
        if row.answer.times.first is not None:
            self._pace = 0.9 * self._pace + 0.1 * (time.monotonic() - row.answer.times.asked)
        row.answer.end(reason)

    def _remove(self, row: Row) -> None:
        self.chooser.end(row)
        if row.alone is None and self.shared is not None:
            self.shared.remove(row)
        else:
            self.lone.remove(row)


class _Failing:
    """An error within the block goes to those who wait for the answers, not to the thread that happened to write.

    An interrupted thread is told, too. The answers go on if that was during a call of the language model, which is
    made again; else some row may be half changed, and they end.
    """

    def __init__(self, fail: Callable[[Exception], None], shared: SharedRows | None) -> None:
        self.fail = fail
        self.shared = shared

    def __enter__(self) -> None:
        if self.shared is not None:
            self.shared.is_calling = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self.fail(error)
        elif error is not None and not (self.shared and self.shared.is_calling):
            self.fail(RuntimeError(f"the thread that wrote the answers was interrupted ({type(error).__name__})"))
        return isinstance(error, Exception)


def _stacked(logits: Sequence[Tensor]) -> Tensor:
    base = logits[0]._base
    if base is not None and len(base) == len(logits):  # the parts of one tensor
        return base
    return torch.cat(list(logits))
