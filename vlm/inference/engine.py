"""The one way to get text out of a model: questions in, answers out, whole or streamed."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.common.errors import PromptError
from vlm.common.trust import trusting
from vlm.common.types import Example, Message
from vlm.inference.batching.answers import Answers
from vlm.inference.batching.asynchronous import AsyncAnswers
from vlm.inference.decoding import decode
from vlm.inference.generation import Generation
from vlm.inference.ranking import Normaliser, Ranking, rank_candidates, rows_of, sums_of, with_ending
from vlm.inference.stopping import StopSequences, stop_sequences
from vlm.inference.streaming import StreamedText, before, cleaner
from vlm.processors.messages import Conversation, to_messages

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.inference.session import ChatSession


def __getattr__(name: str) -> Any:
    """A name of earlier versions."""
    from vlm.common.moved import find_name

    return find_name(__name__, name)


class Engine(AsyncAnswers, Answers):
    """A model that is ready to answer.

    Attributes:
        model: the modules, in evaluation mode.
        processor: template, tokenizer, image and video recipes.
        config: what it was built from; None when the engine was not loaded from a configuration.
        device: where the model is.
        features: visual features of the most recent images.
        allow_urls: whether ``http(s)`` addresses of images and videos are fetched.

    Example:
        >>> model = Engine.load("output/mine")
        >>> model.chat("What is in the image?", image="cat.jpg", max_new_tokens=40)
        'A cat on a sofa.'
    """

    def __repr__(self) -> str:
        weights = list(self.model.parameters())
        count = sum(p.numel() for p in weights)
        size = f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
        dtype = str(weights[-1].dtype).removeprefix("torch.") if weights else "no weights"
        name = "/".join(self.name)
        parts = " -> ".join(self.composition)
        return f"<vlm.Engine {name and f'{name}: '}{parts}; {size} parameters, {self.device}, {dtype}>"

    @property
    def name(self) -> list[str]:
        """Architecture and model type, as far as the configuration names them."""
        model = self.config and self.config.model
        return [n for n in (model.arch, model.model_type) if n] if model else []

    @property
    def composition(self) -> list[str]:
        """Names of the vision encoder, the bridges and the language model, in that order."""
        if self.config is None:
            modules = (self.model.vision, *self.model.bridge, self.model.llm)
            return [type(module).__name__ for module in modules if module is not None]
        model = self.config.model
        parts = [part.name for part in (model.vision, *model.bridge) if part is not None]
        path = model.llm.raw.get("path")
        return [*parts, Path(path).name if path else model.llm.name]

    @classmethod
    def load(
        cls,
        source: str | Path | Config,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        options: Sequence[str] = (),
        allow_urls: bool = False,
        trust: bool = False,
        allow_random: bool = False,
    ) -> Engine:
        """Build the model that ``source`` describes, and read its weights.

        Args:
            source: a run folder (or its ``last``, ``best`` or ``step_...``), which needs nothing else; a YAML file or
                the name of one that ships with the package (``tiny/eval``); a folder of published weights that
                is recognised; or a checked configuration.
            device: ``auto`` (default), ``cpu``, or an accelerator with or without index.
            dtype: of the weights; None keeps what the configuration says.
            options: ``key=value`` changes on top of the configuration.
            allow_urls: fetch ``http(s)`` addresses of images and videos.
            trust: let the configuration import modules and read the environment; what this user trained on this machine
                always may.
            allow_random: take a model with parameters that no file fills, whose answers mean nothing.

        Raises:
            UserError: an unusable configuration, file or device.
        """
        from vlm.inference.load import load_parts

        with trusting(trust):
            model, processor, config, where = load_parts(source, device, dtype, options, allow_random=allow_random)
        return cls(model, processor, config=config, device=where, allow_urls=allow_urls)

    def chat(
        self,
        question: Conversation,
        image: Any = None,
        video: Any = None,
        *,
        generation: Generation | None = None,
        **options: Any,
    ) -> str:
        """The answer to one question; nothing is remembered (see :meth:`conversation`).

        Args:
            question: text, or messages with the user's question last, see ``messages.Conversation``.
            image: path, PIL image, array, tensor, bytes or URL, or a list of these.
            video: path, bytes or frames, or a list of videos.
            generation: options of the answer; None: those of :meth:`default_generation`.
            options: changes to these, e.g. ``max_new_tokens=40``, ``do_sample=False``, ``seed=1``.

        Raises:
            PromptError: not a question, or one that is longer than the context.
            DataError: an image or video that cannot be read.
            UserError: an unknown option, or a value outside its range.
        """
        messages = to_messages(question, image, video, allow_urls=self.allow_urls)
        return self.generate([messages], self.options(generation, **options))[0]

    def conversation(self, system: str | None = None, generation: Generation | None = None) -> ChatSession:
        """A conversation that remembers; ``system`` replaces the template's system text."""
        from vlm.inference.session import ChatSession

        return ChatSession(self, generation, system=system)

    def generate(
        self,
        conversations: Sequence[Conversation],
        generation: Generation | None = None,
        batch_size: int = 16,
        **options: Any,
    ) -> list[str]:
        """The answer to each question or conversation of a list.

        Args:
            conversations: questions, or lists of messages that end with the user's question.
            generation: options of the answers; None: those of :meth:`default_generation`, here and below.
            batch_size: how many run together; it changes speed and memory, not the answers.
            options: changes to the generation options.

        Raises:
            PromptError: not a conversation, placeholders and images differ in number, or one that is longer than the
                context.
            NotFiniteError: a part computes values that are not numbers; it is named. So in all that follows.
        """
        single = isinstance(conversations, str | Mapping | Message | Example) or not isinstance(conversations, Iterable)
        conversations = [] if single else list(conversations)
        if single or any(isinstance(c, Message | Mapping) for c in conversations):
            raise PromptError(
                "generate takes a list of conversations",
                fix="wrap it: model.generate([question]), or use model.chat(question); a conversation is a list too",
            )
        if not isinstance(batch_size, int) or batch_size < 1:
            raise PromptError(f"batch_size is {batch_size!r}, expected an integer of at least 1")
        generation = self.options(generation, **options)
        if self._together(generation):
            return [answer.text for answer in self._written(conversations, generation, batch_size)]
        clean = cleaner(self.processor.template, generation.cleanup)
        answers: list[str] = []
        for first in range(0, len(conversations), batch_size):
            ids = self.generate_ids(conversations[first : first + batch_size], generation)
            texts = (self.processor.tokenizer.decode(row) for row in ids)
            answers += [clean(before(text, generation.stop or ())) for text in texts]
        return answers

    def generate_ids(
        self,
        conversations: Sequence[Conversation],
        generation: Generation | None = None,
        stops: StopSequences | None = None,
    ) -> list[list[int]]:
        """Token ids of the answers of one batch, each including the token or stop sequence that ended it.

        ``stops`` replaces the stop sequences derived from ``generation.stop`` or the template.
        """
        generation = generation or self.default_generation()
        if self._together(generation):
            if stops is None:
                texts = self.processor.template.stop if generation.stop is None else generation.stop
                stops = stop_sequences(self.processor.tokenizer, texts)
            return [a.ids for a in self._written(conversations, generation, max(1, len(conversations)), stops)]
        prompt = self.prompt(conversations, generation)
        with self._naming_part(conversations):
            return decode(self._llm, prompt, *self.limits(generation, prompt, stops), self.model.compute_dtype)

    def _together(self, generation: Generation) -> bool:
        """Whether answers of lists come and go on their own; else a list is one padded batch."""
        return generation.num_beams == 1 and generation.use_cache and self.batches

    def stream(
        self,
        messages: Conversation,
        generation: Generation | None = None,
        stop_event: threading.Event | None = None,
        *,
        image: Any = None,
        video: Any = None,
        **options: Any,
    ) -> Generator[StreamedText, None, None]:
        """The answer in pieces as it is written; ``streaming.join`` of them equals what ``generate`` returns.

        Args:
            messages: see :meth:`chat`, as ``image``, ``video`` and ``options``.
            generation: the options. An answer found by beam search comes as one piece at the end.
            stop_event: set from another thread, it ends the answer after the current token.

        Raises:
            PromptError: see :meth:`generate`.
        """
        conversation = to_messages(messages, image, video, allow_urls=self.allow_urls)
        return self._stream(conversation, self.options(generation, **options), stop_event)

    def _stream(
        self, messages: Conversation, generation: Generation, stop_event: threading.Event | None
    ) -> Generator[StreamedText, None, None]:
        if generation.num_beams > 1:
            yield StreamedText(self.generate([messages], generation)[0])
            return
        with self._naming_part([messages]):
            answer = self.submit(messages, generation)
            try:
                while not answer.is_read:
                    yield from (pieces := answer.take())
                    if stop_event is not None and stop_event.is_set():
                        answer.cancel()
                    if not pieces:
                        answer.wait()
            finally:
                answer.cancel()

    def rank(
        self,
        conversations: Sequence[Conversation],
        candidates: Sequence[Sequence[str]],
        normalise: Normaliser = "published",
    ) -> list[Ranking]:
        """Candidate answers of each conversation by their loss (the published ``multi_select``).

        Args:
            conversations: each ends with the user's question.
            candidates: the possible answers of each conversation; their number may differ.
            normalise: what a candidate's summed token loss is divided by; see ``ranking``.
        """
        with self._naming_part(conversations):
            return rank_candidates(
                lambda examples: self.model(self.batch(examples), return_logits=True),
                self.processor,
                self.examples(conversations),
                candidates,
                normalise,
            )

    def log_likelihoods(
        self, conversations: Sequence[Conversation], endings: Sequence[Sequence[str]], *, end: bool = False
    ) -> list[list[float]]:
        """The log-probability of each ending of each conversation, summed over its tokens, in nats.

        Media are encoded once, and endings that differ in their last token share a pass of the language model.

        Args:
            conversations: each ends with the user's question.
            endings: possible answers of each; their number may differ. Without a token an ending has probability 1.
            end: count what the template ends an answer with as well, so that the answer is this text and no longer one.

        Raises:
            PromptError: a conversation does not fit into the context together with its endings.
            DataError: an image or video that cannot be read.
        """
        if len(conversations) != len(endings):
            raise PromptError(f"{len(conversations)} conversations, but endings of {len(endings)}")
        encode = self.processor.encode_answer
        ids = [[encode(text, end) for text in own] for own in endings]
        rows = rows_of(ids)
        if not rows:
            return [[] for _ in endings]
        with self._naming_part(conversations):
            prompts = self.examples(conversations)
            inputs = self.fuse([with_ending(prompts[r.prompt], r.ids) for r in rows])
            if self.positions is not None and inputs.segments.shape[1] > self.positions:
                room = self.positions - max(len(r.ids) for r in rows)
                prompts = self.examples([self._fit(c, room) for c in conversations])
                inputs = self.fuse([with_ending(prompts[r.prompt], r.ids) for r in rows])
            return sums_of(self.model, inputs, rows, ids)
