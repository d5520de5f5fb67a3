"""A conversation that remembers: images, questions, and the cleaned answers."""

from __future__ import annotations

import threading
from collections.abc import Generator as Stream
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError, PromptError
from vlm.common.types import Image, Message, Part, Text, Video
from vlm.inference.context import turns_of
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.inference.streaming import StreamedText, extend


class ChatSession:
    """One user's talk with a model.

    ``messages`` is the history; the answers in it are the cleaned ones, so that later turns see them. ``examples``
    come before every prompt (see :mod:`vlm.inference.few_shot`), outside the history. ``system`` is_restart that of
    the template; of the history the last ``keep_turns`` answered turns are in the prompt (-1: all).
    """

    def __init__(self, engine: Engine, generation: Generation | None = None, examples: Sequence[Message] = ()) -> None:
        """``generation``: how it answers; None: as the composition says (``Engine.default_generation``)."""
        self.engine = engine
        self.examples = list(examples)
        self.system: str | None = None
        self.keep_turns = -1
        self.generation = generation or engine.default_generation()
        self.messages: list[Message] = []
        self._stop = threading.Event()

    def ask(self, text: str, images: Sequence[Any] = ()) -> None:
        """Add a question, with media in front of it (paths, bytes or PIL images; ``Image`` or ``Video`` parts).

        They are decoded now: a bad one never gets into the history.

        Raises:
            DataError: an image or video that cannot be read, or a video for a model of images.
            PromptError: neither text nor image.
        """
        parts: list[Part] = [self.read(i if isinstance(i, Image | Video) else Image(i)) for i in images]
        if text.strip():
            parts.append(Text(text.strip()))
        if not parts:
            raise PromptError("nothing was asked", fix="type a question")
        self.messages.append(Message("user", tuple(parts)))

    def read(self, medium: Image | Video) -> Image | Video:
        """The medium with its pixels instead of where they come from. Raises DataError: see :meth:`ask`."""
        processor = self.engine.processor
        if isinstance(medium, Image):
            return Image(processor.image(medium.source, _name(medium.source)))
        if processor.video is None:
            raise DataError(
                f"video {_name(medium.source)}: this model takes images only", fix="set model.video, or use another"
            )
        return Video(processor.video(medium.source, _name(medium.source), None))

    def stream(self, generation: Generation | None = None) -> Stream[StreamedText, None, None]:
        """The answer to the open question in pieces; what was written when it ended goes into the history.

        Raises:
            PromptError: there is no open question, or it is too long.
        """
        if not self.is_open:
            raise PromptError("there is no open question", fix="ask first")
        self._stop.clear()
        text = ""
        finished = False
        try:
            for delta in self.engine.stream(self.prompt(), generation or self.generation, self._stop):
                text = extend(text, delta)
                yield delta
            finished = True
        finally:
            if (finished or text) and self.is_open:
                self.messages.append(Message("assistant", (Text(text),)))

    def prompt(self) -> list[Message]:
        """What the model is asked: system text, examples, and as much of the history as is kept."""
        turns = turns_of(self.messages)[1]
        kept = turns if self.keep_turns < 0 else turns[-self.keep_turns - 1 :]
        system = [] if self.system is None else [Message("system", (Text(self.system),))]
        return [*system, *self.examples, *(m for turn in kept for m in turn)]

    def answer(self, generation: Generation | None = None) -> str:
        """The whole answer to the open question (see ``stream``)."""
        for _ in self.stream(generation):
            pass
        return self.messages[-1].text

    def stop(self) -> None:
        """End the answer that is being written (from another thread); what there is of it is kept."""
        self._stop.set()

    def regenerate(self) -> None:
        """Forget the last answer, so that its question is open again.

        Raises:
            PromptError: there is no answer yet.
        """
        if self.is_open or not self.messages:
            raise PromptError("there is no answer to write again", fix="ask first")
        self.messages.pop()

    def take_back(self) -> None:
        """Forget the open question (one that could not be answered)."""
        if self.is_open:
            self.messages.pop()

    def reset(self) -> None:
        """Begin anew: no images, no history."""
        self.stop()
        self.messages = []

    @property
    def is_open(self) -> bool:
        """Whether a question waits for its answer."""
        return bool(self.messages) and self.messages[-1].role == "user"


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "the image"
