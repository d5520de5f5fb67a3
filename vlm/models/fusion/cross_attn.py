"""Cross-attention: media stay outside the sequence, and inserted layers attend to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm.common.bounds import Natural
from vlm.common.errors import ConfigError
from vlm.common.registry import register_fusion
from vlm.common.types import MEDIA_TOKEN, Batch, Features
from vlm.models.fusion.base import LLMInputs
from vlm.models.fusion.locations import earlier, locate
from vlm.models.fusion.positions import restart_positions
from vlm.models.fusion.splice import check_placeholders
from vlm.models.inserts.base import InsertData


@register_fusion("cross_attn")
class CrossAttention:
    """Each placeholder is one text token with its own embedding; inserts such as ``gated_xattn`` read the media."""

    @dataclass
    class Config:
        """Options of ``fusion: {name: cross_attn}``.

        ``image_token_id``: token that is embedded at a placeholder. Text attends to the next medium, or with
        ``attend_previous`` to the last one before it; ``placement_augmentation`` draws one of the two for each
        training pass. ``immediate: false`` lets text attend to all media up to that one.
        ``uniform_when_missing`` allows more placeholders than images (as the published code does); a token whose
        image is missing then attends uniformly to the sample's other images. Otherwise an error.

        Example: ``fusion: {name: cross_attn, image_token_id: 32001}``
        """

        image_token_id: Natural | None = None
        attend_previous: bool = False
        placement_augmentation: bool = False
        immediate: bool = True
        uniform_when_missing: bool = False

    needs_llm_width = False
    provides = ("location", "first", "last")

    def __init__(self, config: Config, llm: Any) -> None:
        if config.image_token_id is None or not 0 <= config.image_token_id < llm.vocab_size:
            raise ConfigError(
                f"model.fusion.image_token_id is {config.image_token_id}, allowed: 0 to {llm.vocab_size - 1}",
                fix="give the id of the token for an image; "
                "model.llm.vocab_size adds rows for tokens that the LLM's folder lacks",
            )
        self.config = config
        self.llm = llm

    def __call__(self, batch: Batch, visual: Features | None) -> LLMInputs:
        """Ids ``[b, s]`` with ``MEDIA_TOKEN`` at each medium and tokens ``[n, f, v, d]`` of any width -> ``[b, s]``.

        The inserts get per position ``location`` (number of the medium, -1 for none, above ``last`` for one that is
        missing) and ``first``, ``last`` (numbers of its sample's media, ``last < first`` without media); shared
        ``media [n, k, d]``, the frames of a medium together, and ``real [n, k]`` or None.

        Raises:
            PromptError: placeholders and media do not agree, with both counts and the sample.
        """
        if not self.config.uniform_when_missing:
            check_placeholders(batch, visual)
        ids = torch.where(batch.ids == MEDIA_TOKEN, self.config.image_token_id or 0, batch.ids)
        segments = batch.segments
        packed, data = int(segments.max()) > 1, self._data(batch, visual)
        return LLMInputs(self.llm.embed(ids), segments, restart_positions(segments), batch.labels, packed, data)

    def _data(self, batch: Batch, visual: Features | None) -> InsertData:
        placeholders = (batch.ids == MEDIA_TOKEN) & (batch.segments > 0)
        previous = self._attend_previous()
        location = locate(placeholders, batch.segments, previous)
        first, last = _own_media(batch, placeholders)
        # from numbers within the row to numbers in the batch
        offset = first - earlier(placeholders, batch.segments) - 1
        location = torch.where((location > 0) & (last >= first), location + offset, -1)
        media = real = None
        if visual is not None and len(batch.media_row):
            media = visual.tokens.flatten(1, 2)
            real = None if visual.mask is None else visual.mask.flatten(1)
        return InsertData(
            tokens={"location": location, "first": first, "last": last},
            shared={
                "media": media,
                "real": real,
                "all": media is not None and bool((last >= first)[batch.segments > 0].all()),
                "immediate": self.config.immediate,
                "evenly": self.config.uniform_when_missing,
            },
            appended={} if previous else {"location": -1},
        )

    def _attend_previous(self) -> bool:
        if self.config.placement_augmentation and torch.is_grad_enabled():
            return bool(torch.rand(()) < 0.5)
        return self.config.attend_previous


def _own_media(batch: Batch, placeholders: Tensor) -> tuple[Tensor, Tensor]:
    """``[b, s]`` indices in the batch of the first and last medium of each position's sample (0 and -1: none)."""
    rows, most = len(placeholders), int(batch.segments.max()) + 1
    count = torch.zeros(rows, most, dtype=torch.long, device=placeholders.device)
    sample = batch.segments[batch.media_row, batch.media_pos]
    count.index_put_((batch.media_row, sample), torch.ones_like(sample), accumulate=True)
    last = count.flatten().cumsum(0).view(rows, most) - 1
    first = last - count + 1
    none = count == 0
    first, last = first.masked_fill(none, 0), last.masked_fill(none, -1)
    return first.gather(1, batch.segments), last.gather(1, batch.segments)
