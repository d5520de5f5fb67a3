"""The one way to get text out of a model: questions in, answers out, whole or streamed."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.common.errors import PromptError
from vlm.common.trust import trusting
from vlm.common.types import Batch, Example, Message
from vlm.inference.batching.alone import write_alone
from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.batching.stats import Stats
from vlm.inference.context import fit, room_for_answer, room_for_prompt, too_long
from vlm.inference.decoding import Prompt, StopCriteria, decode, steps
from vlm.inference.feature_cache import FeatureCache
from vlm.inference.generation import CHAT, Generation, default_generation
from vlm.inference.ranking import Normaliser, Ranking, rank_candidates
from vlm.inference.stopping import StopSequences, stop_sequences
from vlm.inference.streaming import StreamedText, TextStream, cleaner, marks_of
from vlm.models.finite import naming_part
from vlm.processors.collate import collate
from vlm.processors.messages import Conversation, to_messages
from vlm.processors.templates.base import IMAGE_PLACEHOLDER, EndsByIds

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.inference.session import ChatSession
    from vlm.models.fusion.base import LLMInputs
    from vlm.models.vlm import VLM
    from vlm.processors.processor import Processor


def __getattr__(name: str) -> Any:
    """A name of earlier versions."""
    from vlm.common.moved import find_name

    return find_name(__name__, name)


class Engine:
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

    def __init__(
        self,
        model: VLM,
        processor: Processor,
        *,
        config: Config | None = None,
        device: torch.device | str = "cpu",
        allow_urls: bool = False,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.config = config
        self.device = torch.device(device)
        self.features = FeatureCache()
        self.allow_urls = allow_urls
        self._writing = threading.Lock()
        self._stats = Stats()

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

    def default_generation(self, base: Generation = CHAT) -> Generation:
        """``base`` with the generation options that the composition sets (``model.generation``)."""
        return default_generation(self.config, base)

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

    def options(self, generation: Generation | None = None, **changes: Any) -> Generation:
        """``generation``, or the defaults of this model, with changes. Raises UserError: an unknown option."""
        if generation is not None and not isinstance(generation, Generation):
            raise PromptError(
                f"found a {type(generation).__name__} in place of generation options", fix="pass image=... or video=..."
            )
        return (generation or self.default_generation()).replace(**changes)

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
        clean = cleaner(self.processor.template, generation.cleanup)
        answers: list[str] = []
        for first in range(0, len(conversations), batch_size):
            ids = self.generate_ids(conversations[first : first + batch_size], generation)
            answers += [clean(self.processor.tokenizer.decode(row)) for row in ids]
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
        prompt = self.prompt(conversations, generation)
        with self._naming_part(conversations):
            return decode(self._llm, prompt, *self.limits(generation, prompt, stops), self.model.compute_dtype)

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
        prompt = self.prompt([messages], generation)
        template = self.processor.template
        text = TextStream(self.processor.tokenizer, cleaner(template, generation.cleanup), marks_of(template))
        cuts = template.config.truncate_at if generation.cleanup == "chat" else []
        with self._naming_part([messages]):
            for (token,) in steps(self._llm, prompt, *self.limits(generation, prompt), self.model.compute_dtype):
                if token is not None and (delta := text.push(token)):
                    yield delta
                if stop_event is not None and stop_event.is_set():
                    break
                if any(cut in text.raw for cut in cuts):
                    break  # clean-up drops whatever follows
        if rest := text.finish():
            yield rest

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

        Args:
            messages: see :meth:`chat`, as ``image``, ``video`` and ``options``.
            generation: the options; without beams.
            asking: whose question it is, how urgent, and what else to tell about its tokens.

        Raises:
            PromptError, DataError, UserError: see :meth:`chat`.
            BusyError: too many questions are waiting.
        """
        conversation = to_messages(messages, image, video, allow_urls=self.allow_urls)
        generation, asking = self.options(generation, **options), asking or Asking()
        prompt = self.prompt([conversation], generation)
        generation, ends = self.limits(generation, prompt)
        template = self.processor.template
        answer = Answer(
            self.processor.tokenizer, cleaner(template, generation.cleanup), marks_of(template), generation.stop or ()
        )
        answer.usage.prompt = prompt.mask.shape[1]
        write_alone(self, answer, prompt, generation, ends, asking, self._writing)
        return answer

    def stats(self) -> Stats:
        """What the engine has done and holds."""
        return dataclasses.replace(self._stats)

    def _naming_part(self, conversations: Sequence[Conversation]) -> AbstractContextManager[None]:
        """Within the block, an error about values that are not numbers names the part that computed them first."""
        return naming_part(self.model, lambda: self.batch(self.examples(conversations)))

    def prompt(self, conversations: Sequence[Conversation], generation: Generation | None = None) -> Prompt:
        """Left-padded embeddings of the conversations, cut to the context as ``generation.context`` says."""
        generation = generation or self.default_generation()
        inputs = self.fuse(self.examples(conversations))
        room = room_for_prompt(generation, self.positions)
        if generation.context == "turns" and inputs.segments.shape[1] > room:
            inputs = self.fuse(self.examples([self._fit(c, room) for c in conversations]))
        prompt = Prompt.of(inputs)
        if generation.context == "published":
            prompt = prompt.last(max(1, generation.max_length - generation.max_new_tokens))
        return prompt

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, media as their special token or ``<ImageHere>``, before it is cut to the context.

        Raises PromptError: see :meth:`generate`.
        """
        segments = self.processor.template.chat_segments(list(messages))
        return "".join(s.text or ("" if s.medium is None else IMAGE_PLACEHOLDER) for s in segments)

    def length(self, messages: Conversation) -> int:
        """Positions that a conversation takes in the language model, visual tokens included."""
        inputs = self.fuse(self.examples([messages]))
        return int((inputs.segments > 0).sum())

    def examples(self, conversations: Sequence[Conversation]) -> list[Example]:
        """Token ids and pixels of the prompts; the assistant's turn is left open."""
        messages = (to_messages(c, allow_urls=self.allow_urls) for c in conversations)
        return [m if isinstance(m, Example) else self.processor.encode_chat(m) for m in messages]

    def batch(self, examples: Sequence[Example]) -> Batch:
        """A right-padded batch on the model's device."""
        return collate(list(examples), self.processor.tokenizer.pad).to(self.device)

    def fuse(self, examples: Sequence[Example]) -> LLMInputs:
        """Text and images of a batch as one sequence per row; cached images are not encoded again."""
        batch = self.batch(examples)
        with torch.inference_mode():
            pixels, encode = batch.pixels, self.model.encode
            visual = None if pixels is None else self.features.encode(pixels, encode, batch.frames, batch.about)
            return self.model.prepare(batch, visual)

    def _fit(self, conversation: Conversation, room: int) -> Conversation:
        conversation = to_messages(conversation, allow_urls=self.allow_urls)
        if not isinstance(conversation, Example):
            return fit(conversation, room, self.length)
        if (taken := self.length(conversation)) > room:
            raise too_long(taken, room)
        return conversation

    @property
    def positions(self) -> int | None:
        """The language model's context length according to its configuration, or None."""
        return self.model.positions

    @property
    def _llm(self) -> Any:
        return self.model.llm.model

    def limits(
        self, generation: Generation, prompt: Prompt, stops: StopSequences | None = None
    ) -> tuple[Generation, StopCriteria]:
        """The options with ``max_new_tokens`` cut to the context, and what ends an answer.

        Raises PromptError: the prompt leaves no room for an answer.
        """
        if generation.context != "published":
            room = room_for_answer(generation, self.positions, prompt.mask.shape[1])
            generation = dataclasses.replace(generation, max_new_tokens=room)
        tokenizer = self.processor.tokenizer
        if stops is None:
            texts = self.processor.template.stop if generation.stop is None else generation.stop
            stops = stop_sequences(tokenizer, texts)
        ends: tuple[int, ...] = () if tokenizer.eos is None else (tokenizer.eos,)
        known = self._llm.config.get_text_config().eos_token_id
        if isinstance(known, list) and tokenizer.eos in known:  # some chat models have several end tokens
            ends += tuple(i for i in known if i != tokenizer.eos)
        template = self.processor.template
        more = template.end_ids if isinstance(template, EndsByIds) else ()
        ends = tuple(dict.fromkeys([*ends, *more]))
        bos = tokenizer.bos if tokenizer.bos is not None else tokenizer.pad
        return generation, StopCriteria(ends, bos, tokenizer.pad, stops, self.model.llm.banned_ids)
