"""The composition: vision encoder -> chain of bridges -> fusion -> LLM with its inserts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.processes.shards import most
from vlm.common.types import Batch, Features, MediaFacts, Output
from vlm.models.counting import Rule, joins_frames, rules_of
from vlm.models.frames import join, same_shapes
from vlm.models.frozen.encode import FirstParts, by_shape, encode_stored
from vlm.models.fusion.base import LLMInputs
from vlm.models.inserts.base import InsertData
from vlm.models.layer_hooks import zero_of
from vlm.models.precision import autocast
from vlm.models.protocols import Fusion, needs_llm_width
from vlm.models.trainable import set_modes


class VLM(nn.Module):
    """State-dict keys: ``vision.*``, ``bridge.<i>.*``, ``inserts.<i>.*``, ``llm.*``.

    Attributes:
        compute_dtype: autocast dtype of a forward pass, unless the caller has entered autocast.
        vision_dtype: the same for the vision encoder; used if ``compute_dtype`` is float32.
        read_from: what filled each parameter last; models that read the same file may share its tensors.
        random: names of the parameters that no file filled; frozen ones are stored with what a run trains.
        first: the first parts, whose results a feature cache keeps; None: no cache.
        split: how the parameters are split over processes, or None. All of them must compute the same layers then.
        even: the layers of the visual parts are split, too, so that all must encode equally often.
    """

    vision: Any  # VisionEncoder | None, see vlm.models.protocols
    bridge: Any  # nn.ModuleList of Bridge
    inserts: Any  # nn.ModuleList of LayerInsert
    llm: Any  # LanguageModel
    fusion: Fusion | Any

    def __init__(
        self, vision: nn.Module | None, bridge: list[nn.Module], llm: nn.Module, inserts: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.vision = vision
        self.bridge = nn.ModuleList(bridge)
        self.inserts = nn.ModuleList(inserts)
        self.llm = llm
        self.fusion = None
        self.compute_dtype = torch.float32
        self.vision_dtype = torch.float32
        self.random: frozenset[str] = frozenset()
        self.read_from: dict[str, Hashable] = {}
        self.first: FirstParts | None = None
        self.split: Any = None
        self.even = False

    @property
    def device(self) -> torch.device:
        """Device of the LLM's embeddings."""
        return self.llm.model.get_input_embeddings().weight.device

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens of one frame in the LLM's sequence."""
        count = self.vision.num_tokens
        for part in self.bridge:
            count = part.num_tokens(count)
        return count

    @property
    def positions(self) -> int | None:
        """The LLM's context length according to its configuration, or None."""
        config: Any = self.llm.model.config
        found: int | None = config.get_text_config().to_dict().get("max_position_embeddings")
        return found

    def visual_tokens(self, frames: int = 1) -> int:
        """Positions in the LLM's sequence of a medium with ``frames`` frames, an affine function of ``frames``.

        It is 1, the placeholder, without a vision encoder or if the fusion keeps media outside the sequence.
        """
        if self.vision is None or not needs_llm_width(self.fusion):
            return 1
        return self.tokens_per_frame * (1 if joins_frames(self.bridge) else frames)

    def counters(self) -> tuple[Rule, ...]:
        """How each part changes the shape of a medium, where its positions depend on more than its frames; else none.

        Raises ConfigError: a part does not say.
        """
        if self.vision is None or not needs_llm_width(self.fusion):
            return ()
        return rules_of(self.vision, self.bridge)

    def train(self, mode: bool = True) -> VLM:
        """Train mode for trainable parts; frozen ones stay in eval mode."""
        return set_modes(self, mode)

    def encode(self, pixels: Tensor, frames: Tensor | None = None, about: MediaFacts | None = None) -> Features:
        """Pixels ``[n, f, 3, h, w]`` -> visual tokens ``[n, f, q, d]``, normally of the LLM's width.

        No gradients are recorded up to the first trainable part. Media with equal numbers of frames (``frames [n]``,
        see :class:`Batch`), height and width (``about.shapes``) are encoded together, so that no part sees padding; the
        result has a mask.
        """
        parts = []
        for places, (count, height, width) in same_shapes(pixels, frames, about):
            own = pixels[places, :count, :, :height, :width]
            parts.append((places, self._encode(own, about and about.select(places.to(own.device)))))
        return dataclasses.replace(join(parts), about=about)

    def _encode(self, pixels: Tensor, about: MediaFacts | None) -> Features:
        return self.finish(self.begin(pixels, about, 1), about, 1)

    def begin(self, pixels: Tensor, about: MediaFacts | None, parts: int) -> Features:
        """What the first ``parts`` parts, at least the vision encoder, make of media of one shape."""
        exact = self.compute_dtype is torch.float32
        with autocast(pixels.device, self.vision_dtype if exact else self.compute_dtype):
            value = _run(self.vision, pixels, pixels)
        if exact and not torch.is_autocast_enabled(pixels.device.type):
            value = dataclasses.replace(value, tokens=value.tokens.float())
        return self._bridges(value, about, list(self.bridge)[: parts - 1])

    def finish(self, value: Features, about: MediaFacts | None, parts: int) -> Features:
        """What the other parts make of what :meth:`begin` returned."""
        return self._bridges(value, about, list(self.bridge)[parts - 1 :])

    def _bridges(self, value: Features, about: MediaFacts | None, bridges: Sequence[nn.Module]) -> Features:
        with autocast(value.tokens.device, self.compute_dtype):
            for part in bridges:
                value = _run(part, dataclasses.replace(value, about=about), value.tokens)
        return value

    def prepare(self, batch: Batch, visual: Features | None = None) -> LLMInputs:
        """Encode the media (unless ``visual`` holds their tokens) and fuse them into the text.

        Raises PromptError: placeholders and media do not match.
        """
        more = self._more_calls(batch, visual) if self.even else 0
        if visual is None and batch.stored is not None:
            visual = encode_stored(self, batch, batch.stored)
        elif visual is None and batch.pixels is not None and len(batch.pixels):
            visual = self.encode(batch.pixels, batch.frames, batch.about)
        idle = [self._encode(*self._spare(batch)).tokens for _ in range(more)]
        with autocast(batch.ids.device, self.compute_dtype):
            inputs = self.fusion(batch, visual)
        if self.split is not None:
            inputs = self._evened(batch, inputs, visual, idle)
        if inputs.inserts is None and any(insert.needs_data for insert in self.inserts):
            inputs = dataclasses.replace(inputs, inserts=InsertData())
        return inputs

    def forward(self, batch: Batch, *, return_logits: bool = False) -> Output:
        """The loss of a batch as (sum, count); ``return_logits`` adds float32 logits of every position (slow)."""
        inputs = self.prepare(batch)
        keep = inputs.predicts()
        targets = inputs.targets(keep)
        with autocast(batch.ids.device, self.compute_dtype):
            hidden = self.llm(inputs, None if return_logits else keep)
            loss = self.llm.loss(hidden[keep] if return_logits else hidden, targets)
            loss = loss if self.split is not None else loss + self._unused(batch)
            more = (self.llm.head(hidden).float(), inputs.labels) if return_logits else ()
            return Output(loss, len(targets), *more)

    def _unused(self, batch: Batch) -> Tensor | float:
        """Zero, as a function of the trainable visual parameters, which a text-only batch does not use.

        Every process then has a gradient for every parameter, as data-parallel training requires. Inserts see to it
        themselves.
        """
        if not torch.is_grad_enabled() or batch.has_media:
            return 0.0
        return zero_of(p for part in (self.vision, *self.bridge) if part is not None for p in part.parameters())

    def _more_calls(self, batch: Batch, visual: Features | None) -> int:
        """How often to encode besides, so that every process does so as often as the one with the most shapes."""
        own = 0
        if visual is None and batch.stored is not None:
            own = len(by_shape(batch.stored))
        elif visual is None and batch.pixels is not None and len(batch.pixels):
            own = sum(1 for _ in same_shapes(batch.pixels, batch.frames, batch.about))
        return most(own, batch.ids.device) - own

    def _evened(self, batch: Batch, inputs: LLMInputs, visual: Features | None, idle: list[Tensor]) -> LLMInputs:
        """``inputs``, made so that every process computes, and has gradients of, the same layers as the others.

        ``idle`` are tokens that were encoded for nothing. All embeddings have a gradient if the visual parts train:
        only then do decoder layers that are frozen have a backward pass, with and without media.
        """
        if not torch.is_grad_enabled():
            return inputs
        zero = zero_of(idle if visual is None else [visual.tokens, *idle])
        zero = zero if idle or visual is not None else self._unused(batch)
        return dataclasses.replace(inputs, inputs_embeds=inputs.inputs_embeds + zero)

    def _spare(self, batch: Batch) -> tuple[Tensor, MediaFacts | None]:
        """A medium to encode for nothing: the first of the batch, or a blank image."""
        if batch.stored is None and batch.pixels is not None and len(batch.pixels):
            return batch.pixels[:1], batch.about and batch.about.select(slice(1))
        side = self.vision.image_size
        facts = {"sizes": torch.full((1, 2), side), "texts": torch.zeros(1, 1, dtype=torch.long)}
        device = batch.ids.device
        return torch.zeros(1, 1, 3, side, side, device=device), MediaFacts(**facts).map(lambda value: value.to(device))


def _run(part: nn.Module, value: Any, tokens: Tensor) -> Features:
    """``part(value)``; gradients are recorded only if ``tokens`` or the part have any."""
    live = torch.is_grad_enabled() and (tokens.requires_grad or any(p.requires_grad for p in part.parameters()))
    with contextlib.nullcontext() if live else torch.no_grad():
        return part(value)
