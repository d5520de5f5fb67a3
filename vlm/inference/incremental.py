"""Prompts as embeddings, and step-by-step decoding.

Shapes: b rows, s prompt positions, t new tokens, d width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import vlm.models.hf.lean  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, PreTrainedModel

from vlm.models.inserts.base import InsertData
from vlm.models.layer_hooks import INSERT_DATA
from vlm.models.llm.attention import seeing
from vlm.models.llm.packing import axes_first, mixes_by_attention, takes_positions

if TYPE_CHECKING:
    from vlm.models.fusion.base import LLMInputs


@dataclass
class Prompt:
    """Left-padded prompts.

    Attributes:
        embeds: ``[b, s, d]``, zeros at padding.
        mask: ``[b, s]`` int64, 0 at padding.
        inserts: data of the inserts, or None.
        positions: ``[b, s]`` or ``[b, s, axes]``, 0 at padding; None: counted from the first real position of each row.
        blocks: ``[b, s]``, as in :class:`~vlm.models.fusion.base.LLMInputs`; None: all causal.
        media: ``[b, s]``, as there; None: no media in the sequence.
    """

    embeds: Tensor
    mask: Tensor
    inserts: InsertData | None = None
    positions: Any = None  # always a tensor once made
    blocks: Tensor | None = None
    media: Tensor | None = None

    def __post_init__(self) -> None:
        if self.positions is None:
            self.positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)

    @classmethod
    def of(cls, inputs: LLMInputs) -> Prompt:
        """The prompts of fused rows. Raises ValueError: the rows are packed."""
        inputs = inputs.left_padded()
        mask = (inputs.segments > 0).long()
        return cls(inputs.inputs_embeds, mask, inputs.inserts, inputs.position_ids, inputs.blocks, inputs.media)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Prompt:
        """A copy with ``move`` applied to every tensor."""
        own = (move(self.embeds), move(self.mask), self.inserts and self.inserts.moved(move), move(self.positions))
        return Prompt(*own, *(None if value is None else move(value) for value in (self.blocks, self.media)))

    def last(self, count: int) -> Prompt:
        """The last ``count`` positions of each row, which are counted from 0 again."""
        if self.mask.shape[1] <= count:
            return self
        kept = self.moved(lambda value: value[:, -count:])
        first = (kept.mask == 0).sum(1, keepdim=True)
        real = kept.mask.view(*kept.mask.shape, *[1] * (kept.positions.dim() - 2))
        rows = torch.arange(len(first), device=first.device)[:, None]
        kept.positions = (kept.positions - kept.positions[rows, first]) * real
        return kept

    def rows(self) -> list[Prompt]:
        """Each row alone, without its padding."""
        result = []
        for row, mask in enumerate(self.mask):
            first = len(mask) - int(mask.sum())

            def own(value: Tensor, row: int = row, first: int = first) -> Tensor:
                return value[row : row + 1, first:]

            result.append(self.moved(own))
        return result


def decoder_of(llm: Any, prompt: Prompt, use_cache: bool) -> IncrementalDecoder | RowByRow:
    """What runs a transformers model over prompts of any lengths.

    Padding on the left must not change a row. Attention with given positions ignores it; recurrent layers, convolutions
    and families that count positions by themselves do not, so that each row has a decoder of its own there.
    """
    single = len(prompt.mask) == 1 or not (prompt.mask == 0).any()
    known = isinstance(llm, PreTrainedModel)
    if single or not known or (mixes_by_attention(llm) and takes_positions(llm)):
        return IncrementalDecoder(llm, prompt, use_cache)
    return RowByRow([IncrementalDecoder(llm, row, use_cache) for row in prompt.rows()])


class IncrementalDecoder:
    """Runs the language model over the prompt, then over one token per row at a time.

    With ``use_cache`` keys and values of earlier positions are kept; without, or if the model has no cache that beams
    can be moved in, all positions are recomputed.
    """

    def __init__(self, llm: nn.Module, prompt: Prompt, use_cache: bool) -> None:
        self.llm: Any = llm
        self.embeds = prompt.embeds
        self.mask = prompt.mask
        self.padded = bool((prompt.mask == 0).any())
        self.positions = prompt.positions
        self.next: Tensor = prompt.positions.flatten(1).amax(1) + 1
        self.blocks = prompt.blocks
        self.use_cache = use_cache
        self.inserts = prompt.inserts
        self.cache: Any = None
        accepts = inspect.signature(llm.forward).parameters
        self.extra = {"logits_to_keep": 1} if "logits_to_keep" in accepts or "kwargs" in accepts else {}
        self.takes_positions = "position_ids" in accepts or "kwargs" in accepts
        self.cache_name = "cache" if "cache" in accepts else "past_key_values"  # its name before transformers 5.24

    def read(self, tokens: Tensor | None) -> Tensor:
        """Append ``tokens [b]`` (None the first time); returns the next token's logits ``[b, vocab]`` in float32."""
        inputs: dict[str, Any] = {}
        if tokens is not None:
            if self.padded:
                self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
            last = self.next.view(-1, *[1] * (self.positions.dim() - 1)).expand_as(self.positions[:, -1:])
            self.positions = last if self.use_cache else torch.cat([self.positions, last], dim=1)
            self.next = self.next + 1
            new = self.llm.get_input_embeddings()(tokens[:, None])
            self.embeds = new if self.use_cache else torch.cat([self.embeds, new.to(self.embeds.dtype)], dim=1)
            if self.inserts is not None:
                self.inserts = self.inserts.step() if self.use_cache else self.inserts.extended()
            if self.blocks is not None:  # they are within the prompt
                self.blocks = None if self.use_cache else functional.pad(self.blocks, (0, 1))
        if self.takes_positions:
            inputs["position_ids"] = axes_first(self.positions)
        if self.inserts is not None:
            inputs[INSERT_DATA] = self.inserts
        with seeing(self.blocks, type(self.llm).__name__):
            out = self.llm(
                inputs_embeds=self.embeds,
                attention_mask=self.mask if self.padded else None,  # without one, no mask has to be built
                use_cache=self.use_cache,
                **{self.cache_name: self.cache},
                **inputs,
                **self.extra,
            )
        self.cache = out.get(self.cache_name) if self.use_cache else None
        self.use_cache = self.cache is not None
        return out.logits[:, -1].float()

    def repeat(self, times: int) -> None:
        """Make ``times`` rows of each, for beams; call it after the first :meth:`read`."""
        if self.cache is not None and not _movable(self.cache):
            self.cache, self.use_cache = None, False
        self.mask = self.mask.repeat_interleave(times, 0)
        self.positions = self.positions.repeat_interleave(times, 0)
        self.next = self.next.repeat_interleave(times, 0)
        self.blocks = None if self.blocks is None else self.blocks.repeat_interleave(times, 0)
        self.embeds = self.embeds.repeat_interleave(times, 0)
        self.inserts = self.inserts and self.inserts.moved(lambda value: value.repeat_interleave(times, 0))
        if self.cache is not None:
            self.cache.batch_repeat_interleave(times)

    def reorder(self, index: Tensor) -> None:
        """Row ``index[i]`` becomes row ``i``; both belong to the same prompt."""
        if self.cache is not None:
            self.cache.reorder_cache(index)
        else:
            self.embeds = self.embeds[index]


class RowByRow:
    """One :class:`IncrementalDecoder` per row, none of which sees padding."""

    def __init__(self, decoders: Sequence[IncrementalDecoder]) -> None:
        self.decoders = decoders

    def read(self, tokens: Tensor | None) -> Tensor:
        """See :class:`IncrementalDecoder`, as below."""
        parts = [None] * len(self.decoders) if tokens is None else tokens.chunk(len(self.decoders))
        return torch.cat([decoder.read(part) for decoder, part in zip(self.decoders, parts, strict=True)])

    def repeat(self, times: int) -> None:
        """Make ``times`` rows of each."""
        for decoder in self.decoders:
            decoder.repeat(times)

    def reorder(self, index: Tensor) -> None:
        """Row ``index[i]`` becomes row ``i``; both belong to the same prompt."""
        parts = index.chunk(len(self.decoders))
        for number, (decoder, part) in enumerate(zip(self.decoders, parts, strict=True)):
            decoder.reorder(part - number * len(part))


def _movable(cache: Any) -> bool:
    """Whether rows of a cache can be repeated and reordered, as beams need; states of recurrent layers cannot."""
    return isinstance(cache, Cache) and all(hasattr(layer, "batch_repeat_interleave") for layer in cache.layers)
