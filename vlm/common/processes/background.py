"""One piece of work at a time in a thread of its own, whose failure is raised where it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any


class Background:
    """A thread that does what it is given, one thing after the other; it is started with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin ``work`` and return at once; what was begun before must have been waited for."""
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._work = self._pool.submit(work)

    @property
    def running(self) -> bool:
        """Whether work goes on."""
        return self._work is not None and not self._work.done()

    def check(self) -> None:
        """Raise what ended work has raised, once; nothing while it goes on."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the work, and raise what it has raised, once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def fault(self) -> BaseException | None:
        """Wait for the work, and return what it has raised without raising it."""
        work, self._work = self._work, None
        if work is None:
            return None
        wait([work])
        return work.exception()

    def close(self) -> None:
        """End the thread after what it does now."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None


def host_copy(value: Any) -> Any:
    """``value`` with copies of its tensors on the host, which later steps do not change; lists and dicts are copied."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: host_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(host_copy(item) for item in value)
    return value
