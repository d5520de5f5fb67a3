"""The composition: vision encoder -> chain of bridges -> fusion -> LLM with its inserts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.types import Batch, Features, MediaFacts, Output
from vlm.models.counting import Rule, joins_frames, rules_of
from vlm.models.frames import join, same_shapes
from vlm.models.frozen.encode import FirstParts, encode_stored
from vlm.models.fusion.base import LLMInputs
from vlm.models.inserts.base import InsertData
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
        if visual is None and batch.stored is not None:
            visual = encode_stored(self, batch, batch.stored)
        elif visual is None and batch.pixels is not None and len(batch.pixels):
            visual = self.encode(batch.pixels, batch.frames, batch.about)
        with autocast(batch.ids.device, self.compute_dtype):
            inputs = self.fusion(batch, visual)
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
            loss = self.llm.loss(hidden[keep] if return_logits else hidden, targets) + self._unused(batch)
            more = (self.llm.head(hidden).float(), inputs.labels) if return_logits else ()
            return Output(loss, len(targets), *more)

    def _unused(self, batch: Batch) -> Tensor | float:
        """Zero, as a function of the trainable visual parameters, which a text-only batch does not use.

        Every process then has a gradient for every parameter, as data-parallel training requires.
        """
        if not torch.is_grad_enabled() or batch.has_media:
            return 0.0
        parts = [self.vision, *self.bridge, *(insert for insert in self.inserts if insert.needs_data)]
        return sum((p.sum() * 0.0 for part in parts if part for p in part.parameters() if p.requires_grad), 0.0)


def _run(part: nn.Module, value: Any, tokens: Tensor) -> Features:
    """``part(value)``; gradients are recorded only if ``tokens`` or the part have any."""
    live = torch.is_grad_enabled() and (tokens.requires_grad or any(p.requires_grad for p in part.parameters()))
    with contextlib.nullcontext() if live else torch.no_grad():
        return part(value)
