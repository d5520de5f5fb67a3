"""A conversation that remembers: images, questions, and the cleaned answers."""

from __future__ import annotations

import threading
from collections.abc import Generator as Stream
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError, PromptError
from vlm.common.types import Image, Message, Part, Text, Video
from vlm.inference.context import turns_of
from vlm.inference.generation import Generation
from vlm.inference.streaming import StreamedText, extend
from vlm.processors.messages import to_images, to_videos
from vlm.processors.placeholders import place_media

if TYPE_CHECKING:
    from vlm.inference.engine import Engine


class ChatSession:
    """One user's conversation with a model; see :meth:`vlm.inference.engine.Engine.conversation`.

    Attributes:
        messages: the history; its answers are the cleaned ones, which later turns see.
        examples: messages before every prompt (see :mod:`vlm.inference.few_shot`), not part of the history.
        system: replaces the system text of the template, unless it is None.
        keep_turns: how many answered turns of the history the prompt keeps; -1: all.

    Example:
        >>> talk = model.conversation()
        >>> talk.chat("What is in the image?", image="cat.jpg")
        'A cat on a sofa.'
        >>> talk.chat("What color is it?")
        'Grey.'
    """

    def __init__(
        self,
        engine: Engine,
        generation: Generation | None = None,
        examples: Sequence[Message] = (),
        system: str | None = None,
    ) -> None:
        """``generation``: options of the answers; None: ``Engine.default_generation``."""
        self.engine = engine
        self.examples = list(examples)
        self.system = system
        self.keep_turns = -1
        self.generation = generation or engine.default_generation()
        self.messages: list[Message] = []
        self._stop = threading.Event()

    def __repr__(self) -> str:
        answers = sum(message.role == "assistant" for message in self.messages)
        return f"<vlm.ChatSession: {answers} answer{'' if answers == 1 else 's'}, {self.engine!r}>"

    def chat(self, question: str | None, image: Any = None, video: Any = None, **options: Any) -> str:
        """Ask, with the history before it, and return the answer; both become part of the history.

        Args:
            question: the text; None: the open question, which was added by :meth:`ask`.
            image: path, PIL image, array, tensor, bytes or URL, or a list of these.
            video: path, bytes or frames, or a list of videos.
            options: changes to the generation options, e.g. ``max_new_tokens=40``.

        Raises:
            DataError, PromptError, UserError: see ``Engine.chat``; the history is as it was before.
        """
        for _ in self.stream(question, image, video, **options):
            pass
        return self.messages[-1].text

    def ask(self, text: str, images: Sequence[Any] = ()) -> None:
        """Add a question, preceded by its media (``Image`` or ``Video`` parts, or what ``image=`` of ``chat`` takes).

        They are decoded now: one that cannot be read never enters the history.

        Raises:
            DataError: an image or video that cannot be read, or a video for a model without ``model.video``.
            PromptError: neither text nor image.
        """
        allowed = self.engine.allow_urls
        parts: list[Part] = []
        for medium in images:
            part = medium if isinstance(medium, Image | Video) else Image(medium)
            parts += map(self.read, to_videos([part], allowed) if isinstance(part, Video) else to_images(part, allowed))
        if not isinstance(text, str):
            raise PromptError(
                f"a question is a string, found a {type(text).__name__}", fix="conversation().chat('...')"
            )
        if text.strip():
            parts.append(Text(text.strip()))
        if not parts:
            raise PromptError("nothing was asked", fix="type a question")
        placed = place_media(parts, "the question")
        self.take_back()  # a question whose answer was never begun
        self.messages.append(Message("user", placed))

    def read(self, medium: Image | Video) -> Image | Video:
        """The medium with its pixels in place of its source. Raises DataError: see :meth:`ask`."""
        processor, source = self.engine.processor, medium.source
        kind = type(medium).__name__.lower()
        name = str(source) if isinstance(source, str | Path) else f"the {kind}"
        if isinstance(medium, Image):
            return Image(processor.image(source, name))
        if processor.video is None:
            raise DataError(f"video {name}: this model takes images only", fix="set model.video, or use another model")
        return Video(processor.video(source, name, None))

    def stream(
        self,
        question: str | Generation | None = None,
        image: Any = None,
        video: Any = None,
        *,
        generation: Generation | None = None,
        **options: Any,
    ) -> Stream[StreamedText, None, None]:
        """The answer in pieces; what was written before the stream ended becomes part of the history.

        Args:
            question: see :meth:`chat`, as ``image``, ``video`` and ``options``; None answers the open question, which
                was added by :meth:`ask`.
            generation: the options; also accepted as the only argument.

        Raises:
            PromptError: there is no open question, or it is too long.
        """
        if isinstance(question, Generation):
            question, generation = None, question
        generation = self.engine.options(generation or self.generation, **options)
        if question is not None:
            allowed = self.engine.allow_urls
            self.ask(question, [*to_images(image, allowed), *to_videos(video, allowed)])
        return self._stream(generation, take_back=question is not None)

    def _stream(self, generation: Generation, take_back: bool) -> Stream[StreamedText, None, None]:
        if not self.is_open:
            raise PromptError("there is no open question", fix="ask first")
        self._stop.clear()
        text = ""
        finished = False
        try:
            for delta in self.engine.stream(self.prompt(), generation, self._stop):
                text = extend(text, delta)
                yield delta
            finished = True
        finally:
            if (finished or text) and self.is_open:
                self.messages.append(Message("assistant", text))
            elif take_back:
                self.take_back()

    def prompt(self) -> list[Message]:
        """What the model reads: system text, examples, and as much of the history as is kept."""
        turns = turns_of(self.messages)[1]
        kept = turns if self.keep_turns < 0 else turns[-self.keep_turns - 1 :]
        system = [] if self.system is None else [Message("system", self.system)]
        return [*system, *self.examples, *(m for turn in kept for m in turn)]

    def answer(self, generation: Generation | None = None) -> str:
        """The whole answer to the open question (see ``stream``)."""
        return self.chat(None, generation=generation)

    def stop(self) -> None:
        """End the answer that is being written (from another thread); what was written so far is kept."""
        self._stop.set()

    def regenerate(self) -> None:
        """Forget the last answer, so that its question is open again. Raises PromptError: there is no answer yet."""
        if self.is_open or not self.messages:
            raise PromptError("there is no answer to regenerate", fix="ask first")
        self.messages.pop()

    def take_back(self) -> None:
        """Forget the open question (one that could not be answered)."""
        if self.is_open:
            self.messages.pop()

    def reset(self) -> None:
        """Start over: no images, no history."""
        self.stop()
        self.messages = []

    @property
    def is_open(self) -> bool:
        """Whether a question is waiting for its answer."""
        return bool(self.messages) and self.messages[-1].role == "user"
