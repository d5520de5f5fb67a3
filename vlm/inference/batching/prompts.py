"""From conversations to what the language model reads: the half of an engine that comes before the first token."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm.common.types import Batch, Example, Features, Message
from vlm.config.run import Serving
from vlm.inference.batching.weights import weights_stamp
from vlm.inference.context import fit, room_for_answer, room_for_prompt, too_long
from vlm.inference.decoding import Prompt, StopCriteria
from vlm.inference.feature_cache import FeatureCache
from vlm.inference.generation import CHAT, Generation, default_generation
from vlm.inference.stopping import StopSequences, stop_sequences
from vlm.models.precision import no_autocast
from vlm.processors.collate import collate
from vlm.processors.messages import Conversation, to_messages
from vlm.processors.templates.base import IMAGE_PLACEHOLDER, EndsByIds

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.models.fusion.base import LLMInputs
    from vlm.models.vlm import VLM
    from vlm.processors.processor import Processor

MIB = 2**20


class Prompts:
    """Encodes conversations with the processor and the visual parts of a model.

    Attributes:
        model: the modules, in evaluation mode.
        processor: template, tokenizer, image and video recipes.
        config: what it was built from; None when the engine was not loaded from a configuration.
        serving: limits and switches.
        device: where the model is.
        features: visual features of recent images.
        allow_urls: whether ``http(s)`` addresses of images and videos are fetched.
    """

    def __init__(
        self,
        model: VLM,
        processor: Processor,
        *,
        config: Config | None = None,
        device: torch.device | str = "cpu",
        allow_urls: bool = False,
        serving: Serving | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.config = config
        self.device = torch.device(device)
        self.allow_urls = allow_urls
        self.serving = serving or (Serving() if config is None else config.run.serving)
        self.features = FeatureCache(self.serving.feature_mib * MIB)
        self._encoding = threading.Lock()
        self._stamp = weights_stamp(self.model)

    def default_generation(self, base: Generation = CHAT) -> Generation:
        """``base`` with the generation options that the composition sets (``model.generation``)."""
        return default_generation(self.config, base)

    def prompt(
        self, conversations: Sequence[Conversation], generation: Generation | None = None, tenant: str = ""
    ) -> Prompt:
        """Left-padded embeddings of the conversations, cut to the context as ``generation.context`` says."""
        generation = generation or self.default_generation()
        return self._prompt(self.examples(conversations), conversations, generation, tenant)

    def _prompt(
        self, examples: Sequence[Example], conversations: Sequence[Conversation], generation: Generation, tenant: str
    ) -> Prompt:
        inputs = self.fuse(examples, tenant)
        room = room_for_prompt(generation, self.positions)
        if generation.context == "turns" and inputs.segments.shape[1] > room:
            inputs = self.fuse(self.examples([self._fit(c, room) for c in conversations]), tenant)
        prompt = Prompt.of(inputs)
        if generation.context == "published":
            prompt = prompt.last(max(1, generation.max_length - generation.max_new_tokens))
        return prompt

    def rows(
        self, conversations: Sequence[Conversation], generation: Generation, tenant: str = ""
    ) -> list[tuple[Prompt, list[int]]]:
        """The prompt of each conversation alone, without padding, with its token ids; images are encoded together."""
        examples = self.examples(conversations)
        if self.model.inserts and len(examples) > 1:  # the data of inserts would be that of all rows
            return [self.rows([c], generation, tenant)[0] for c in conversations]
        prompts = self._prompt(examples, conversations, generation, tenant).rows()
        return [(prompt, example.ids) for prompt, example in zip(prompts, examples, strict=True)]

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, media as their special token or ``<ImageHere>``, before it is cut to the context.

        Raises PromptError: see :meth:`Engine.generate`.
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

    def fuse(self, examples: Sequence[Example], tenant: str = "") -> LLMInputs:
        """Text and images of a batch as one sequence per row; cached images of the tenant are not encoded again."""
        batch, visual = self.batch(examples), None
        with self._encoding:
            if (stamp := weights_stamp(self.model)) != self._stamp:
                self._stamp = stamp
                self.forget()
        with torch.inference_mode(), no_autocast(self.model.device):
            if batch.pixels is not None:
                owners = [tenant] * len(batch.pixels)
                visual = self.features.encode(batch.pixels, self._encode, batch.frames, batch.about, owners)
            with self._encoding:  # one thread at a time, so that memory does not grow with threads
                return self.model.prepare(batch, visual)

    def _encode(self, pixels: Tensor, *more: Any) -> Features:
        """``VLM.encode``, in one thread at a time."""
        with self._encoding:
            return self.model.encode(pixels, *more)

    def forget(self) -> None:
        """Empty what is remembered of images, as happens by itself when the weights have changed."""
        self.features.clear()

    def _fit(self, conversation: Conversation, room: int) -> Conversation:
        conversation = to_messages(conversation, allow_urls=self.allow_urls)
        if not isinstance(conversation, Example):
            return fit(conversation, room, self.length)
        if (taken := self.length(conversation)) > room:
            raise too_long(taken, room)
        return conversation

    @cached_property
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
