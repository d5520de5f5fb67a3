"""The conversation of one visitor of the chat page; knows nothing of the page's widgets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from vlm.common.errors import PromptError, UserError
from vlm.common.types import Image, Video
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.inference.session import ChatSession
from vlm.inference.streaming import extend

PAUSE = 0.04
"""Seconds between two updates of the page while an answer is written."""

UPLOADS = 16
"""Decoded uploads kept at most, over all visitors; one that was dropped is decoded again."""


TURNS = 100
"""Questions of a conversation at most."""
MEDIA = 16
"""Images and videos of a conversation at most; their pixels are kept while it lasts."""


class Uploads:
    """Images and videos from their upload, when they are decoded to check them, to the question about them."""

    def __init__(self, engine: Engine) -> None:
        self._read = ChatSession(engine).read
        self._held: dict[Image | Video, Image | Video] = {}

    def add(self, medium: Image | Video) -> None:
        """Decode an upload. Raises DataError: it cannot be read."""
        self._held[medium] = self._read(medium)
        for oldest in list(self._held)[:-UPLOADS]:
            self._held.pop(oldest, None)

    def take(self, medium: Image | Video) -> Image | Video:
        """The decoded medium, which is not kept any longer; or ``medium`` itself where it is not there."""
        return self._held.pop(medium, medium)


class PageChat:
    """A session and the messages that show it.

    Attributes:
        shown: mappings with ``role`` and ``content`` (text, or a list of ``{"path": ...}`` and text).
        read: the prompt of the last answer as text.
    """

    def __init__(self, engine: Engine, uploads: Uploads | None = None) -> None:
        self.engine = engine
        self.uploads = uploads or Uploads(engine)
        self.session = ChatSession(engine)
        self.shown: list[dict[str, Any]] = []
        self.image: str | None = None
        self.video: str | None = None
        self.read = ""
        self._busy: ChatSession | None = None
        self._before: tuple[Any, ...] = ([], [], None, None)

    def ask(self, question: str, image: str | None, keep: bool = False, video: str | None = None) -> None:
        """Add a question. An image or video not asked about before starts a new conversation, unless ``keep``.

        Raises:
            PromptError: no text, or an answer is being written.
            DataError: an image or video that cannot be read; the conversation is unchanged.
        """
        if not question.strip():
            raise PromptError("type a question first")
        if len(self.shown) >= 2 * TURNS:
            raise PromptError(f"a conversation on this page has at most {TURNS} questions", fix="press Restart")
        if self._busy is self.session:
            raise PromptError("an answer is being written", fix="wait until it is complete, or press Stop")
        if self.is_waiting:  # asked before, and never answered
            self.give_up()
        pairs: list[tuple[Any, str | None, str | None]] = [(Image, image, self.image), (Video, video, self.video)]
        media: list[Image | Video] = [kind(path) for kind, path, last in pairs if path not in (None, last)]
        if keep and media and sum(len(message.media) for message in self.session.messages) >= MEDIA:
            raise PromptError(f"a conversation on this page has at most {MEDIA} images", fix="press Restart")
        self._remember()
        if media and not keep:
            self.session.reset()
            self.shown = []
        try:
            self.session.ask(question, [self.uploads.take(medium) for medium in media])
        except UserError:
            self._restore()
            raise
        content: list[Any] = [{"path": medium.source} for medium in media]
        self.shown.append({"role": "user", "content": [*content, question.strip()]})
        self.image, self.video = image or self.image, video or self.video

    def write(
        self, generation: Generation, system: str | None = None, keep_turns: int = -1
    ) -> Iterator[list[dict[str, Any]]]:
        """``shown`` as the answer grows; ``system`` and ``keep_turns`` as in :class:`ChatSession`.

        Raises PromptError: the question does not fit; it is taken back.
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
            if session is self.session:
                self._restore()
            raise
        finally:
            if self._busy is session:
                self._busy = None
            if session.is_open and bubble in shown:  # ended before the first word
                shown.remove(bubble)
            bubble["content"] = text or "*(empty answer)*"
        if session is self.session and not session.is_open:
            self._remember()  # the conversation before a new image is not held any longer
        yield self.shown

    @property
    def is_waiting(self) -> bool:
        """Whether a question is open and nobody is answering it."""
        return self.session.is_open and self._busy is not self.session

    def give_up(self) -> None:
        """Take back a question that cannot be answered, with its media; nothing where none is open."""
        if self.session.is_open:
            self._restore()

    def _remember(self) -> None:
        self._before = list(self.session.messages), list(self.shown), self.image, self.video

    def _restore(self) -> None:
        self.session.messages, self.shown, self.image, self.video = self._before
        self._remember()

    def again(self) -> None:
        """Drop the last answer, so that its question is open again.

        Raises PromptError: there is no answer yet, or one is being written.
        """
        if self._busy is self.session:
            raise PromptError("an answer is being written", fix="wait until it is complete, or press Stop")
        self._remember()
        self.session.regenerate()
        self.shown.pop()

    def stop(self) -> None:
        """End the answer that is being written."""
        self.session.stop()

    def restart(self) -> None:
        """Forget everything; an answer that is being written ends and is dropped."""
        self.session.reset()
        self.session = ChatSession(self.engine)
        self.shown = []
        self.image = self.video = None
        self._remember()
