"""Threads that those who wait for them use in turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class FairThreads:
    """A pool of threads of one event loop, in which no tenant waits for all the work of another."""

    def __init__(self, count: int, name: str) -> None:
        """``count`` threads with names that begin with ``name``."""
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._free = count
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def run(self, tenant: str, work: Callable[[], T]) -> T:
        """``work()`` in a thread, when it is the tenant's turn. Cancelled, it keeps its thread until it returns."""
        loop = asyncio.get_running_loop()
        if self._free:
            self._free -= 1
        else:
            turn = loop.create_future()
            self._waiting.setdefault(tenant, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # the thread was handed over at the same moment
                    self._release()
                raise

        def over(_: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._release)

        future = self._threads.submit(work)
        future.add_done_callback(over)
        return await asyncio.wrap_future(future)

    def _release(self) -> None:
        """Hand a thread on to the tenant whose turn it is."""
        while self._waiting:
            tenant = next(iter(self._waiting))
            turns = self._waiting.pop(tenant)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns  # after the others
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
