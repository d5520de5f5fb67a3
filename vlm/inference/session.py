"""A conversation that remembers: images, questions, and the cleaned answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterable, Sequence
from collections.abc import Generator as Stream
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError, PromptError
from vlm.common.types import Image, Message, Part, Text, Video
from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.batching.asynchronous import asked, pieces
from vlm.inference.context import turns_of
from vlm.inference.conversation.record import Beside, Record
from vlm.inference.conversation.transcript import MediaForm, from_json, to_json, to_mappings
from vlm.inference.generation import Generation
from vlm.inference.streaming import StreamedText, extend, join
from vlm.models.finite import naming_part
from vlm.processors.messages import to_images, to_videos
from vlm.processors.placeholders import place_media

if TYPE_CHECKING:
    from vlm.inference.engine import Engine

_RECORDS: Beside[Record] = Beside()
"""Numbers of answers, by their messages."""
_ORIGINALS: Beside[Any] = Beside()
"""What media were before they were decoded, by their pixels."""


class ChatSession:
    """One user's conversation with a model; see :meth:`vlm.inference.engine.Engine.conversation`.

    Attributes:
        messages: the history; its answers are the cleaned ones, which later turns see.
        examples: messages before every prompt (see :mod:`vlm.inference.few_shot`), not part of the history.
        system: replaces the system text of the template, unless it is None.
        keep_turns: how many answered turns of the history the prompt keeps; -1: all.
        asking: whose questions these are, and how long an answer may take; see ``Engine.submit``.

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
        self.asking = Asking()
        self.generation = generation or engine.default_generation()
        self.messages: list[Message] = []
        self._stop = threading.Event()
        self._writing: Answer | None = None

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
        return join(self.stream(question, image, video, **options))

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
            pixels: Any = processor.image(source, name)
        elif processor.video is not None:
            pixels = processor.video(source, name, None)
        else:
            raise DataError(f"video {name}: this model takes images only", fix="set model.video, or use another model")
        if pixels is not source:
            _ORIGINALS[pixels] = source
        return type(medium)(pixels)

    def original(self, medium: Image | Video) -> Any:
        """What a medium of the history was before it was decoded: path, bytes, PIL image, ...; None: not known."""
        return _ORIGINALS.get(medium.source)

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

        An answer that was stopped before its first word is none: its question is taken back, or open as before.

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
        self._begin()
        text = ""
        finished = False
        answer: Answer | None = None
        try:
            with self._naming_part():
                if generation.num_beams > 1:
                    stream: Iterable[StreamedText] = self.engine.stream(self.prompt(), generation, self._stop)
                else:
                    answer = self._hold(self.engine.submit(self.prompt(), generation, self.asking))
                    stream = answer
                for delta in stream:
                    text = extend(text, delta)
                    yield delta
            finished = True
        finally:
            if answer is not None:
                answer.cancel()
            self._end(text, finished, answer, take_back)

    async def astream(
        self,
        question: str | None = None,
        image: Any = None,
        video: Any = None,
        *,
        generation: Generation | None = None,
        **options: Any,
    ) -> AsyncGenerator[StreamedText, None]:
        """:meth:`stream` for ``async for``; images are read and encoded without blocking the loop."""
        generation = self.engine.options(generation or self.generation, **options)
        if question is not None:
            allowed = self.engine.allow_urls
            await asyncio.to_thread(self.ask, question, [*to_images(image, allowed), *to_videos(video, allowed)])
        if generation.num_beams > 1:
            yield StreamedText(await asyncio.to_thread(self.answer, generation))
            return
        self._begin()
        text = ""
        finished = False
        answer: Answer | None = None
        try:
            with self._naming_part():
                answer = self._hold(await asked(self.engine.submit, self.prompt(), generation, self.asking))
                async with aclosing(pieces(answer)) as stream:
                    async for delta in stream:
                        text = extend(text, delta)
                        yield delta
            finished = True
        finally:
            self._end(text, finished, answer, take_back=question is not None)

    async def achat(self, question: str | None, image: Any = None, video: Any = None, **options: Any) -> str:
        """:meth:`chat` for ``await``."""
        async with aclosing(self.astream(question, image, video, **options)) as stream:
            return join([piece async for piece in stream])

    def _begin(self) -> None:
        if not self.is_open:
            raise PromptError("there is no open question", fix="ask first")
        self._stop.clear()

    def _naming_part(self) -> AbstractContextManager[None]:
        """Within the block, an error about values that are not numbers names the part that computed them."""
        engine, prompt = self.engine, self.prompt()
        return naming_part(engine.model, lambda: engine.batch(engine.examples([prompt])))

    def _hold(self, answer: Answer) -> Answer:
        """The answer, for :meth:`stop` to find; cancelled if that was called while its question was prepared."""
        self._writing = answer
        if self._stop.is_set():
            answer.cancel()
        return answer

    def _end(self, text: str, finished: bool, answer: Answer | None, take_back: bool) -> None:
        """Add what was written to the history."""
        if self._writing is answer:
            self._writing = None
        whole = finished and (answer is None or answer.finish in ("stop", "length"))
        if (whole or text) and self.is_open:
            message = Message("assistant", text)
            self.messages.append(message)
            if answer is not None:
                _RECORDS[message] = Record.of(answer)
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
        if (answer := self._writing) is not None:
            answer.cancel()

    def regenerate(self) -> None:
        """Forget the last answer, so that its question is open again. Raises PromptError: there is no answer yet."""
        if self.is_open or not self.messages:
            raise PromptError("there is no answer to regenerate", fix="ask first")
        self.messages.pop()

    def take_back(self) -> None:
        """Forget the open question (one that could not be answered)."""
        if self.is_open:
            self.messages.pop()

    def undo(self) -> Message:
        """Forget the last question with its answer, if it has one; returns the question.

        Raises PromptError: nothing was asked.
        """
        turns = turns_of(self.messages)[1]
        if not turns:
            raise PromptError("there is no question to take back", fix="ask first")
        del self.messages[-len(turns[-1]) :]
        return turns[-1][0]

    def fork(self, turns: int | None = None) -> ChatSession:
        """Another conversation with the same settings that begins with the first answered turns of this one.

        Args:
            turns: how many; None: all.

        Raises PromptError: there are fewer.
        """
        answered = [turn for turn in turns_of(self.messages)[1] if turn[-1].role == "assistant"]
        turns = len(answered) if turns is None else turns
        if not 0 <= turns <= len(answered):
            raise PromptError(f"fork after {turns} turns: the conversation has {len(answered)} answered turns")
        result = ChatSession(self.engine, self.generation, self.examples, self.system)
        result.keep_turns, result.asking = self.keep_turns, self.asking
        result.messages = [message for turn in answered[:turns] for message in turn]
        return result

    def edit(self, turn: int, text: str) -> ChatSession:
        """A fork in which question number ``turn`` (from 0) is asked in other words, about the same images and videos.

        It is open in the fork, which :meth:`stream` answers; this conversation stays as it is.

        Raises PromptError: there is no such question, or neither text nor image is left.
        """
        turns = turns_of(self.messages)[1]
        if not 0 <= turn < len(turns):
            raise PromptError(f"edit question {turn}: the conversation has {len(turns)} questions, the first is 0")
        result = self.fork(turn)
        result.ask(text, [medium for message in turns[turn] for medium in message.media])
        return result

    @property
    def last(self) -> Record | None:
        """Numbers of the answer that ends the history; None: there is none, or it was found by beam search."""
        return self.record(self.messages[-1]) if self.messages else None

    def record(self, message: Message) -> Record | None:
        """Numbers of an answer of the history; None: not one that was written in this process, or by beam search."""
        return _RECORDS.get(message)

    def to_messages(self, media: MediaForm = "data") -> list[dict[str, Any]]:
        """The history in the OpenAI form, with the system text if one was set.

        Args:
            media: ``data``: images and videos in full as ``data:`` addresses; ``names``: the paths they were given by.

        Raises DataError: the file of an image or video is gone.
        """
        system = [] if self.system is None else [Message("system", self.system)]
        return to_mappings([*system, *self.messages], self.original, media)

    def to_json(self, media: MediaForm = "data", **more: Any) -> str:
        """The same as the text of a file, which :meth:`from_json` reads; ``more``: other fields of it."""
        return to_json(self.to_messages(media), **more)

    @classmethod
    def from_json(
        cls, engine: Engine, text: str, *, files: bool = False, generation: Generation | None = None
    ) -> ChatSession:
        """The conversation of such a text, or of a list of messages that another program wrote.

        Args:
            engine: the model that goes on with it.
            text: JSON.
            files: images and videos may be named by paths; not for a text from somebody else.
            generation: options of the answers.

        Raises:
            PromptError: not a conversation.
            DataError: an image or video that cannot be read.
        """
        messages = from_json(text, files=files, allow_urls=engine.allow_urls)
        result = cls(engine, generation)
        if messages and messages[0].role == "system":
            result.system = messages.pop(0).text
        result.messages = [
            Message(m.role, [p if isinstance(p, Text) else result.read(p) for p in m.parts]) for m in messages
        ]
        return result

    def reset(self) -> None:
        """Start over: no images, no history."""
        self.stop()
        self.messages = []

    @property
    def is_open(self) -> bool:
        """Whether a question is waiting for its answer."""
        return bool(self.messages) and self.messages[-1].role == "user"
