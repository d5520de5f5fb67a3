"""An engine's answers: asked for one by one or in lists, written together."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from vlm.common.dist import free_bytes
from vlm.common.errors import BusyError, PromptError
from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.batching.prefixes import PrefixCache
from vlm.inference.batching.prompts import MIB, Prompts
from vlm.inference.batching.row import Row
from vlm.inference.batching.scheduler import Scheduler
from vlm.inference.batching.shared import SharedRows, can_share
from vlm.inference.batching.stats import Stats
from vlm.inference.generation import Generation
from vlm.inference.streaming import cleaner, marks_of
from vlm.models.finite import naming_part
from vlm.models.llm.compiled import compile_layers
from vlm.processors.messages import Conversation, to_messages

if TYPE_CHECKING:
    from torch import Tensor

    from vlm.common.types import Features
    from vlm.inference.decoding import Prompt
    from vlm.inference.stopping import StopSequences


class Answers(Prompts):
    """Writes answers; see :class:`~vlm.inference.engine.Engine`, which adds the ways to ask."""

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.prefixes = PrefixCache(self.serving.prefix_mib * MIB)
        self._stats = Stats()
        self._making = threading.Lock()
        self._scheduler: Scheduler | None = None

    @property
    def scheduler(self) -> Scheduler:
        """What writes the answers, made when the first question comes."""
        with self._making:
            if self._scheduler is None:
                self._scheduler = Scheduler(self.model, self.serving, self._shared(), self._stats)
            return self._scheduler

    def _encode(self, pixels: Tensor, *more: Any) -> Features:
        return self.scheduler.encode(pixels, *more)

    def _shared(self) -> SharedRows | None:
        if self.serving.compile:
            compile_layers(self.model.llm)
        if not can_share(self.model):
            return None
        limit = self.serving.kv_mib
        room = free_bytes(self.device) // 4 if limit is None else limit * MIB
        return SharedRows(self.model, self.serving, self.prefixes, room, self._stats)

    @property
    def batches(self) -> bool:
        """Whether answers share the calls of the language model; else they take turns."""
        return self.scheduler.shared is not None

    def submit(
        self,
        messages: Conversation,
        generation: Generation | None = None,
        asking: Asking | None = None,
        *,
        image: Any = None,
        video: Any = None,
        **options: Any,
    ) -> Answer:
        """Ask without waiting; threads and tasks may share an engine, which writes their answers together.

        An answer is written while somebody waits for it or for another one of this engine.

        Args:
            messages: see :meth:`Engine.chat`, as ``image``, ``video`` and ``options``.
            generation: the options; without beams.
            asking: whose question it is, how urgent, and what else to tell about its tokens.

        Raises:
            PromptError, DataError, UserError: see :meth:`Engine.chat`.
            BusyError: too many questions are waiting.
        """
        generation, asking = self.options(generation, **options), asking or Asking()
        if generation.num_beams > 1:
            raise PromptError("an answer by beam search is not written token by token", fix="set num_beams to 1")
        started = time.monotonic()
        self.scheduler.check_queue()  # before the images are encoded
        conversation = to_messages(messages, image, video, allow_urls=self.allow_urls)
        (row,) = self._rows([conversation], generation, asking)
        row.answer.times.asked = started  # images are encoded by now
        self.scheduler.add(row)
        return row.answer

    def submit_all(
        self, conversations: Sequence[Conversation], generation: Generation, asking: Asking | None = None
    ) -> list[Answer]:
        """:meth:`submit` of several questions, whose images are encoded together: all are asked, or none."""
        generation, asking = self.options(generation), asking or Asking()
        if generation.num_beams > 1:
            raise PromptError("an answer by beam search is not written token by token", fix="set num_beams to 1")
        started = time.monotonic()
        self.scheduler.check_queue()  # before the images are encoded
        rows = self._rows([to_messages(c, allow_urls=self.allow_urls) for c in conversations], generation, asking)
        try:
            for row in rows:
                row.answer.times.asked = started  # images are encoded by now
                self.scheduler.add(row)
        except BusyError:
            for row in rows:
                row.answer.cancel()
            raise
        return [row.answer for row in rows]

    def options(self, generation: Generation | None = None, **changes: Any) -> Generation:
        """``generation``, or the defaults of this model, with changes. Raises UserError: an unknown option."""
        if generation is not None and not isinstance(generation, Generation):
            raise PromptError(
                f"found a {type(generation).__name__} in place of generation options", fix="pass image=... or video=..."
            )
        return (generation or self.default_generation()).replace(**changes)

    def _rows(
        self,
        conversations: Sequence[Conversation],
        generation: Generation,
        asking: Asking,
        stops: StopSequences | None = None,
    ) -> list[Row]:
        prompts = self.rows(conversations, generation, asking.tenant)
        return [self._row(prompt, ids, generation, asking, stops) for prompt, ids in prompts]

    def _row(
        self, prompt: Prompt, ids: list[int], generation: Generation, asking: Asking, stops: StopSequences | None
    ) -> Row:
        template = self.processor.template
        if asking.constraint is not None:  # the constraint says where it ends; the template's stop text may be inside
            generation = generation.replace(stop=generation.stop or (), cleanup="raw")
        limited, ends = self.limits(generation, prompt, stops)
        cuts = list(generation.stop or ())
        if generation.cleanup == "chat":
            cuts += template.config.truncate_at  # clean-up drops whatever follows
        answer = Answer(
            self.processor.tokenizer,
            cleaner(template, generation.cleanup),
            lambda: marks_of(template),
            tuple(filter(None, cuts)) if stops is None else (),  # given sequences are all that ends it
            drive=self.scheduler.drive,
            in_background=self.scheduler.in_background,
            settle=self.scheduler.settle,
        )
        answer.usage.prompt = prompt.mask.shape[1]
        return Row(answer, asking, limited, ends, prompt, ids)

    def _written(
        self,
        conversations: Sequence[Conversation],
        generation: Generation,
        at_once: int,
        stops: StopSequences | None = None,
    ) -> Iterator[Answer]:
        """The finished answers, in order; about ``at_once`` are being written at any time."""
        pending: deque[tuple[Answer, Conversation]] = deque()
        group = max(1, at_once // 4)  # whose images are encoded together
        try:
            for first in range(0, len(conversations), group):
                asked = conversations[first : first + group]
                while pending and len(pending) + len(asked) > at_once:
                    yield self._finished(*pending.popleft())
                for row, conversation in zip(self._rows(asked, generation, Asking(), stops), asked, strict=True):
                    while not self._added(row, bool(pending)):
                        yield self._finished(*pending.popleft())
                    pending.append((row.answer, conversation))
            while pending:
                yield self._finished(*pending.popleft())
        finally:
            for answer, _ in pending:
                answer.cancel()

    def _added(self, row: Row, can_wait: bool) -> bool:
        """Ask; False: the queue is full. Raises BusyError: it is, and ``can_wait`` is false."""
        try:
            self.scheduler.add(row)
        except BusyError:
            if not can_wait:
                raise
            return False
        return True

    def _finished(self, answer: Answer, conversation: Conversation) -> Answer:
        with self._naming_part([conversation]):
            answer.result()
        return answer

    def stats(self) -> Stats:
        """What the engine has done and holds."""
        shared = self._scheduler.shared if self._scheduler else None
        return dataclasses.replace(
            self._stats,
            feature_hits=self.features.hits,
            feature_misses=self.features.misses,
            feature_bytes=self.features.bytes,
            prefix_bytes=self.prefixes.bytes,
            kv_bytes=shared.slots.bytes if shared else 0,
        )

    def forget(self) -> None:
        """Empty the caches of images and prompts.

        It happens by itself when the weights have changed (or LoRA was merged or switched off) since the last question,
        unless they were written through ``.data``.
        """
        super().forget()
        self.prefixes.clear()

    def _naming_part(self, conversations: Sequence[Conversation]) -> AbstractContextManager[None]:
        """Within the block, an error about values that are not numbers names the part that computed them first."""
        return naming_part(self.model, lambda: self.batch(self.examples(conversations)))

    def __getstate__(self) -> Any:
        raise TypeError("an engine holds threads and caches; load the model again from its folder instead")
