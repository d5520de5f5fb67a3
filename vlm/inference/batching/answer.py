"""An answer that is being written: its pieces, its end, and what is known of its tokens."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from vlm.common.errors import UserError
from vlm.inference.streaming import StopWatch, StreamedText, TextStream, before

if TYPE_CHECKING:
    from torch import Tensor

    from vlm.processors.tokenizer.tokenizer import Tokenizer

Finish = Literal["stop", "length", "cancelled", "timeout"]
"""Why an answer ended: an end token or stop text, the longest answer, :meth:`Answer.cancel`, or no time left."""


class TokenConstraint(Protocol):
    """What the tokens of one answer must follow, such as a JSON schema; one instance per answer."""

    def allowed(self) -> Tensor:
        """Bool ``[vocab]`` on the CPU: the tokens that may come next, end tokens among them where it may end."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the next token."""
        ...


@dataclass(frozen=True)
class Asking:
    """How one question is treated beside others; what is written is up to ``Generation``.

    Attributes:
        tenant: whose question it is; what one tenant's questions left in a cache is never used for another's.
        priority: questions with a higher one begin first.
        timeout: seconds from now after which the answer ends as it is; None: no limit.
        logprobs: log-probabilities of so many alternatives at each token, 0: of the written token alone; None: none.
        constraint: what the tokens must follow, if anything. The template's stop texts and clean-up then do not apply.
    """

    tenant: str = ""
    priority: int = 0
    timeout: float | None = None
    logprobs: int | None = None
    constraint: TokenConstraint | None = None

    def __post_init__(self) -> None:
        """Raises UserError: a number of log-probabilities below 0."""
        if self.logprobs is not None and self.logprobs < 0:
            raise UserError(f"Asking.logprobs is {self.logprobs}, expected a number of at least 0, or None")


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a written token, before any rule of ``Generation`` changed it, with the likeliest ones."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Usage:
    """Positions that an answer took: of its prompt (visual tokens included), of these found in a cache, and written."""

    prompt: int = 0
    cached: int = 0
    written: int = 0


@dataclass
class Times:
    """``time.monotonic()`` when a question was asked, when its first token came, and when its answer ended."""

    asked: float = field(default_factory=time.monotonic)
    first: float | None = None
    ended: float | None = None


class Answer:
    """One answer, while it is written and after: iterate over its pieces, plainly or with ``async for``.

    Attributes:
        ids: token ids so far, with the one or the stop sequence that ended it.
        finish: why it ended; None while it is written.
        usage: positions that it took.
        times: when things happened.
        logprobs: one per token of ``ids``, if ``Asking.logprobs`` asked for them.
        pause: seconds after readers were told of a token in which they are not told of the next ones.
        is_told: whether readers were told of a token, or of the end, since :meth:`take`.

    Example:
        >>> for piece in model.submit("What is in the image?", image="cat.jpg"):
        ...     print(piece, end="", flush=True)
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        clean: Callable[[str], str],
        texts: Callable[[], list[str]],
        stops: tuple[str, ...] = (),
        *,
        drive: Callable[..., None] | None = None,
        in_background: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """What an engine makes; ``drive`` waits for more and ``in_background`` has somebody else write.

        Args:
            tokenizer: of the model.
            clean: raw text -> answer.
            texts: gives those that ``clean`` acts on.
            stops: texts that end the answer, however they are divided into tokens, and are not shown.
            drive: called by a thread that waits for the next token, or (``to_the_end=True``) for the last; it returns
                when it is there. None: somebody else writes.
            in_background: called before somebody waits without a thread.
            settle: called after :meth:`cancel`, so that nothing is held for an answer that nobody waits for.
        """
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self.usage = Usage()
        self.times = Times()
        self.logprobs: list[TokenLogprob] = []
        self.error: BaseException | None = None
        self._tokenizer = tokenizer
        self._clean = clean
        self._texts = texts
        self._stops = stops
        self._watch = StopWatch(tokenizer, stops) if stops else None
        self._drive = drive
        self._in_background = in_background
        self._settle = settle
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []
        self._read = 0
        self._wanted = True
        self._told_at = 0.0
        self.pause = 0.0
        self.is_told = False

    @cached_property
    def _stream(self) -> TextStream:
        return TextStream(self._tokenizer, self._clean, [*self._texts(), *self._stops], self._stops)

    # ---- the side that writes

    @property
    def is_wanted(self) -> bool:
        """False after :meth:`cancel`."""
        return self._wanted

    @property
    def is_over(self) -> bool:
        """Whether no token will follow."""
        return self.finish is not None or self.error is not None

    def push(self, token: int, logprob: TokenLogprob | None = None) -> bool:
        """Add a token; whether a stop text is complete now, so that the answer should end."""
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        now = time.monotonic()
        if self.times.first is None:
            self.times.first = now
        self.usage.written += 1
        if now >= self._told_at + self.pause:
            self._told_at = now
            self._tell()
        return self._watch is not None and self._watch.push(token)

    def end(self, reason: Finish) -> None:
        """No token follows; the first reason stays."""
        if not self.is_over:
            self.times.ended = time.monotonic()
            self.finish = reason
            self._tell()

    def fail(self, error: BaseException) -> None:
        """No token follows, and whoever reads the answer gets the error."""
        if not self.is_over:
            self.times.ended = time.monotonic()
            self.error = error
            self._tell()

    def _tell(self) -> None:
        self.is_told = True
        with self._changed:
            self._changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    # ---- the side that reads

    def cancel(self) -> None:
        """Write no more; what was written stays. From any thread."""
        if self._wanted and not self.is_over:
            self._wanted = False
            self._settle()
            self._tell()

    @property
    def has_news(self) -> bool:
        """Whether there is an unread token, or the answer is over."""
        return self._read < len(self.ids) or self.is_over

    def take(self) -> list[StreamedText]:
        """The pieces that have come since the last call; with the last of them, what was held back.

        Raises whatever ended the answer.
        """
        self.is_told = False  # before the tokens are read: of one that comes now it is told again
        over = self.is_over  # none follows then
        pieces = []
        if (new := self.ids[self._read :]) and not self._stream.is_cut:
            piece = self._stream.push(new)
            self._read += len(new)
            if piece or piece.is_restart:
                pieces.append(piece)
        if self._stream.is_cut:
            self._read = len(self.ids)
        if over and self._read == len(self.ids) and not self._stream.is_finished:
            rest = self._stream.finish()
            if rest or rest.is_restart:
                pieces.append(rest)
        if over and self.error is not None and not pieces:
            raise self.error
        return pieces

    @property
    def is_read(self) -> bool:
        """Whether every piece has been taken."""
        return self.is_over and self._stream.is_finished and self.error is None

    def __iter__(self) -> Iterator[StreamedText]:
        """The pieces as they come; ``streaming.join`` of them is :meth:`result`. Closing it cancels the answer."""
        try:
            while not self.is_read:
                pieces = self.take()
                yield from pieces
                if not pieces:
                    self.wait()
        finally:
            if not self.is_over:
                self.cancel()

    async def __aiter__(self) -> AsyncIterator[StreamedText]:
        """The same for ``async for``; no thread waits."""
        loop, came = asyncio.get_running_loop(), asyncio.Event()

        def listener() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                loop.call_soon_threadsafe(came.set)

        self._listeners.append(listener)
        self._in_background()
        try:
            while not self.is_read:
                came.clear()
                pieces = self.take()
                for piece in pieces:
                    yield piece
                if not pieces and not self.is_read:
                    await came.wait()
        finally:
            self._listeners.remove(listener)
            if not self.is_over:
                self.cancel()

    def result(self) -> str:
        """The whole answer, when it is over. Raises whatever ended it otherwise."""
        while not self.is_over:
            self.wait(to_the_end=True)
        if self.error is not None:
            raise self.error
        return self.text

    @property
    def text(self) -> str:
        """The answer so far, cleaned."""
        return self._clean(before(self._tokenizer.decode(self.ids), self._stops))

    def wait(self, to_the_end: bool = False) -> None:
        """Return when there is an unread token (see :attr:`has_news`), or when the answer is over."""
        if self._drive is not None:
            self._drive(self, to_the_end=to_the_end)
            return
        with self._changed:
            self._changed.wait_for(lambda: self.is_over if to_the_end else self.has_news)
