"""A conversation as the terminal holds it, and how its answers are written there."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlm.common.errors import printable
from vlm.common.logging import say
from vlm.common.types import Message, Video
from vlm.pages.conversation import numbers
from vlm.serve.terminal.inline import Inline, Shower
from vlm.serve.terminal.screen import dim

if TYPE_CHECKING:
    from vlm.inference.session import ChatSession


@dataclass
class Talk:
    """What a terminal holds besides the conversation.

    Attributes:
        session: the conversation.
        waiting: images and videos of the next question.
        shower: shows images in the terminal.
        speed: whether the speed is told after each answer.
    """

    session: ChatSession
    waiting: list[Any] = field(default_factory=list)
    shower: Shower = field(default_factory=lambda: Shower(Inline.OFF))
    speed: bool = False

    def ask(self, text: str) -> None:
        """Ask about what is waiting, which stays so if the question cannot be answered."""
        self.session.ask(text, self.waiting)
        self.write()
        if self.session.is_open:  # stopped before the first word
            self.session.take_back()
        else:
            self.waiting = []

    def write(self) -> None:
        """Stream one answer to the terminal; Ctrl-C stops it and keeps what was written."""
        say("model: ", end="")
        stream = self.session.stream()
        with stopping(self.session) as stopped:
            try:
                for delta in stream:
                    say(("\nmodel: " if delta.is_restart else "") + printable(delta), end="")
            except KeyboardInterrupt:
                stopped.set()
                stream.close()
        if stopped.is_set():
            say(" [stopped]", end="")
        if self.speed and (about := numbers(self.session.last)):
            say("\n" + dim(about), end="")
        say("\n")

    def retry(self) -> None:
        """Answer the last question again; the old answer stays where no other is written."""
        messages = list(self.session.messages)
        self.session.regenerate()
        try:
            self.write()
        finally:
            if self.session.is_open:
                self.session.messages = messages

    def undo(self) -> Message:
        """Take back the last question and its answer; what it was about waits for the next one."""
        question = self.session.undo()
        self.waiting = [*question.media, *self.waiting]
        return question

    def start_over(self, waiting: list[Any]) -> None:
        """Forget the history; ``waiting`` are the images and videos of the next question."""
        self.session.reset()
        self.waiting = waiting

    @property
    def prompt(self) -> str:
        """The text before the line that is typed."""
        videos = sum(isinstance(medium, Video) for medium in self.waiting)
        counts = {"image": len(self.waiting) - videos, "video": videos}
        declared = ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts.items() if n)
        return f"you ({declared}): " if declared else "you: "


@contextmanager
def stopping(session: ChatSession) -> Iterator[threading.Event]:
    """Within the block Ctrl-C ends the answer after the current token; a second one interrupts at once.

    The event is set when that happened. Where no signal can be caught, Ctrl-C interrupts as ever.
    """
    stopped = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield stopped
        return

    def stop(*_: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)
        # in a thread, because this one may hold a lock that it needs
        threading.Thread(target=session.stop, daemon=True).start()

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
