"""What one visitor of the chat page has said and seen; knows nothing of the page's widgets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from vlm.common.errors import PromptError, UserError
from vlm.common.types import Video
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.inference.session import ChatSession
from vlm.inference.streaming import extend

PAUSE = 0.04
"""Seconds between two updates of the page while an answer is written."""


class PageChat:
    """A session and the bubbles that show it.

    ``shown``: dictionaries with ``role`` and ``content`` (text, or a list of ``{"path": ...}`` and text); ``read``:
    the prompt of the last answer as text.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.session = ChatSession(engine)
        self.shown: list[dict[str, Any]] = []
        self.image: str | None = None
        self.clip: str | None = None
        self.read = ""
        self._busy: ChatSession | None = None

    def ask(self, question: str, image: str | None, keep: bool = False, clip: str | None = None) -> None:
        """Add a question. An image or video that was not asked about yet begins a new conversation, unless ``keep``.

        Raises:
            PromptError: no text, or an answer is being written.
            DataError: an image or video that cannot be read; nothing has changed then.
        """
        if not question.strip():
            raise PromptError("type a question first")
        if self._busy is self.session:
            raise PromptError("an answer is being written", fix="wait for its end, or press Stop")
        media: dict[str, Any] = {}
        if image is not None and image != self.image:
            media[image] = image
        if clip is not None and clip != self.clip:
            media[clip] = Video(clip)
        before = self.session.messages, self.shown
        if media and not keep:
            self.session.reset()
            self.shown = []
        try:
            self.session.ask(question, list(media.values()))
        except UserError:
            self.session.messages, self.shown = before
            raise
        content: list[Any] = [{"path": path} for path in media]
        self.shown.append({"role": "user", "content": [*content, question.strip()]})
        self.image, self.clip = image or self.image, clip or self.clip

    def write(
        self, generation: Generation, system: str | None = None, keep_turns: int = -1
    ) -> Iterator[list[dict[str, Any]]]:
        """The bubbles as the answer grows; ``system`` and ``keep_turns`` as in :class:`ChatSession`.

        Raises:
            PromptError: the question does not fit; it is taken back, with its bubble.
        """
        shown, session = self.shown, self.session
        self._busy = session
        session.system, session.keep_turns = system, keep_turns
        bubble = {"role": "assistant", "content": ""}
        shown.append(bubble)
        text, last = "", 0.0
        try:
            self.read = self.engine.text(session.prompt())
            for delta in session.stream(generation):
                text = extend(text, delta)
                if time.monotonic() - last >= PAUSE:
                    bubble["content"], last = text, time.monotonic()
                    yield self.shown
        except UserError:
            session.take_back()
            del shown[-2:]
            raise
        finally:
            bubble["content"] = text or "*(no words)*"
            if self._busy is session:
                self._busy = None
        yield self.shown

    def again(self) -> None:
        """Open the last question once more.

        Raises:
            PromptError: there is no answer yet, or one is being written.
        """
        if self._busy is self.session:
            raise PromptError("an answer is being written", fix="wait for its end, or press Stop")
        self.session.regenerate()
        self.shown.pop()

    def stop(self) -> None:
        """End the answer that is being written."""
        self.session.stop()

    def restart(self) -> None:
        """Forget everything; an answer that is being written ends, and nothing of it is kept."""
        self.session.reset()
        self.session = ChatSession(self.engine)
        self.shown = []
        self.image = self.clip = None
