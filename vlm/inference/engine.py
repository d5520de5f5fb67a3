"""The one way to get text out of a model: conversations in, answers out, whole or in pieces."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.common.types import Batch, Example, Message
from vlm.inference.context import fit, room_for_answer, room_for_prompt, too_long
from vlm.inference.decoding import Prompt, StopCriteria, decode, steps
from vlm.inference.feature_cache import FeatureCache
from vlm.inference.generation import CHAT, Generation, default_generation
from vlm.inference.ranking import Normaliser, Ranking, rank_candidates
from vlm.inference.stopping import StopSequences, stop_sequences
from vlm.inference.streaming import StreamedText, TextStream, cleaner, marks_of
from vlm.processors.collate import collate
from vlm.processors.templates.base import IMAGE_PLACEHOLDER

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.models.fusion.base import LLMInputs
    from vlm.models.vlm import VLM
    from vlm.processors.processor import Processor

Conversation = Sequence[Message] | Example
"""Messages with the user's question last; or a prompt made by ``Processor.encode_prompt``, taken as it is."""


class Engine:
    """A model ready to answer.

    Attributes: ``model``, ``processor``, ``config`` (None when made by hand), ``device``, ``features``
    (visual features of the last images).
    """

    def __init__(
        self, model: VLM, processor: Processor, *, config: Config | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.config = config
        self.device = torch.device(device)
        self.features = FeatureCache()

    @classmethod
    def load(
        cls,
        source: str | Path | Config,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        options: Sequence[str] = (),
    ) -> Engine:
        """Build the model that a YAML file or a run folder describes, and read its weights.

        Args:
            source: path of a YAML file; a run folder (or its ``last``, ``best`` or ``step_...``), which needs
                nothing else; or a checked configuration.
            device: ``auto`` (default), ``cpu``, or an accelerator with or without index.
            dtype: of the weights; None keeps what the configuration says.
            options: ``key=value`` changes on top of the configuration.

        Raises:
            UserError: an unusable configuration, file or device.
        """
        from vlm.inference.load import load_parts

        model, processor, config, where = load_parts(source, device, dtype, options)
        return cls(model, processor, config=config, device=where)

    def default_generation(self, base: Generation = CHAT) -> Generation:
        """``base`` with the options of an answer that the composition states (``model.generation``)."""
        return default_generation(self.config, base)

    def generate(
        self, conversations: Sequence[Conversation], generation: Generation | None = None, batch_size: int = 16
    ) -> list[str]:
        """The answer to each conversation.

        Args:
            conversations: each ends with the user's question.
            generation: the options; None: those of :meth:`default_generation`, here and below.
            batch_size: how many conversations run together; it changes speed and memory, not the answers.

        Raises:
            PromptError: placeholders and images differ, or a question is longer than the context.
        """
        generation = generation or self.default_generation()
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
        """Token ids of the answers of one batch, each with the token or stop sequence that ended it.

        ``stops`` is_restart the stop sequences derived from ``generation.stop`` or the template.
        """
        generation = generation or self.default_generation()
        prompt = self.prompt(conversations, generation)
        fitting, ends = self._fitting(generation, prompt), self._ends(generation, stops)
        return decode(self._llm, prompt, fitting, ends, self.model.compute_dtype)

    def stream(
        self, messages: Conversation, generation: Generation | None = None, stop_event: threading.Event | None = None
    ) -> Iterator[StreamedText]:
        """The answer in pieces as it is written; ``text.join`` of them equals what ``generate`` gives.

        Args:
            messages: the conversation, the user's question last.
            generation: the options. Beams are only known at the end: one piece then.
            stop_event: set from another thread, it ends the answer after the current token.

        Raises:
            PromptError: see ``generate``.
        """
        generation = generation or self.default_generation()
        if generation.num_beams > 1:
            yield StreamedText(self.generate([messages], generation)[0])
            return
        prompt = self.prompt([messages], generation)
        template = self.processor.template
        text = TextStream(self.processor.tokenizer, cleaner(template, generation.cleanup), marks_of(template))
        cuts = template.config.truncate_at if generation.cleanup == "chat" else []
        fitting, ends = self._fitting(generation, prompt), self._ends(generation)
        for (token,) in steps(self._llm, prompt, fitting, ends, self.model.compute_dtype):
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
        return rank_candidates(
            lambda examples: self.model(self.batch(examples), return_logits=True),
            self.processor,
            self.examples(conversations),
            candidates,
            normalise,
        )

    def prompt(self, conversations: Sequence[Conversation], generation: Generation | None = None) -> Prompt:
        """Left-padded embeddings of the conversations, cut to the context as ``generation.context`` says."""
        generation = generation or self.default_generation()
        inputs = self.fuse(self.examples(conversations))
        room = room_for_prompt(generation, self.positions)
        if generation.context == "turns" and inputs.segments.shape[1] > room:
            inputs = self.fuse(self.examples([self._fit(c, room) for c in conversations]))
        inputs = inputs.left_padded()
        prompt = Prompt(inputs.inputs_embeds, (inputs.segments > 0).long(), inputs.inserts)
        if generation.context == "published":
            keep = max(1, generation.max_length - generation.max_new_tokens)
            inserts = inputs.inserts and inputs.inserts.moved(lambda value: value[:, -keep:])
            prompt = Prompt(prompt.embeds[:, -keep:], prompt.mask[:, -keep:], inserts)
        return prompt

    def text(self, messages: Sequence[Message]) -> str:
        """A conversation as the text that the model reads, media as their special token or ``<ImageHere>``.

        Before it is cut to the context. Raises PromptError: see ``generate``.
        """
        segments = self.processor.template.chat_segments(list(messages))
        return "".join(s.text or ("" if s.medium is None else IMAGE_PLACEHOLDER) for s in segments)

    def length(self, messages: Conversation) -> int:
        """Positions a conversation takes in the language model, visual tokens included."""
        inputs = self.fuse(self.examples([messages]))
        return int((inputs.segments > 0).sum())

    def examples(self, conversations: Sequence[Conversation]) -> list[Example]:
        """Token ids and pixels of the prompts, with the assistant's turn left open."""
        return [c if isinstance(c, Example) else self.processor.encode_chat(list(c)) for c in conversations]

    def batch(self, examples: Sequence[Example]) -> Batch:
        """A right-padded batch on the model's device."""
        return collate(list(examples), self.processor.tokenizer.pad).to(self.device)

    def fuse(self, examples: Sequence[Example]) -> LLMInputs:
        """Text and images of a batch as one sequence per row; images seen before are not encoded again."""
        batch = self.batch(examples)
        with torch.inference_mode():
            pixels, encode = batch.pixels, self.model.encode
            visual = None if pixels is None else self.features.encode(pixels, encode, batch.frames)
            return self.model.prepare(batch, visual)

    def _fit(self, conversation: Conversation, room: int) -> Conversation:
        if not isinstance(conversation, Example):
            return fit(conversation, room, self.length)
        if (taken := self.length(conversation)) > room:
            raise too_long(taken, room)
        return conversation

    @property
    def positions(self) -> int | None:
        """The language model's context length by its configuration, or None."""
        return getattr(self._llm.config.get_text_config(), "max_position_embeddings", None)

    @property
    def _llm(self) -> Any:
        return self.model.llm.model

    def _fitting(self, generation: Generation, prompt: Prompt) -> Generation:
        if generation.context == "published":
            return generation
        room = room_for_answer(generation, self.positions, prompt.mask.shape[1])
        return dataclasses.replace(generation, max_new_tokens=room)

    def _stop_texts(self, generation: Generation) -> tuple[str, ...]:
        return tuple(self.processor.template.stop) if generation.stop is None else generation.stop

    def _ends(self, generation: Generation, stops: StopSequences | None = None) -> StopCriteria:
        tokenizer = self.processor.tokenizer
        if stops is None:
            stops = stop_sequences(tokenizer, self._stop_texts(generation))
        eos = [tokenizer.eos] if tokenizer.eos is not None else []
        bos = tokenizer.bos if tokenizer.bos is not None else tokenizer.pad
        banned = getattr(self.model.llm, "banned_ids", ())
        return StopCriteria(tuple(eos + _more_ends(self._llm, eos)), bos, tokenizer.pad, stops, banned)


def _more_ends(llm: Any, eos: list[int]) -> list[int]:
    """Further end tokens of the model's configuration (some chat models have several)."""
    known = llm.config.get_text_config().eos_token_id
    known = known if isinstance(known, list) else [known]
    return [i for i in known if i not in eos] if set(eos) & set(known) else []
