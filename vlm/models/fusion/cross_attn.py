"""Cross-attention: media stay outside the sequence, and inserted layers attend to them."""

from __future__ import annotations

from collections.abc import Sequence
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
from vlm.models.inserts.base import InsertData, stacked


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

    def join_data(self, parts: Sequence[InsertData]) -> InsertData:
        """See :class:`~vlm.models.protocols.JoinsData`. Parts with the same ``shared`` share their media.

        The fewer tokens of narrower media are filled up with zeros, which ``real`` excludes.
        """
        distinct = {id(part.shared): part for part in parts if part.shared["media"] is not None}
        offsets, total = {}, 0
        for key, part in distinct.items():
            offsets[key] = total
            total += len(part.shared["media"])
        return InsertData(
            tokens=_shifted(parts, [offsets.get(id(part.shared), 0) for part in parts]),
            shared={
                **parts[0].shared,
                **_joined_media([part.shared for part in distinct.values()]),
                "all": all(part.shared["all"] for part in parts),
            },
            appended=parts[0].appended,
            parts=tuple(distinct.values()),
        )

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


def _shifted(parts: Sequence[InsertData], offsets: Sequence[int]) -> dict[str, Tensor]:
    """Tokens ``[1, sum t_i]`` of the parts, numbers of media raised by their offsets; negative ones mean none."""
    joined = {name: torch.cat([part.tokens[name] for part in parts], 1) for name in CrossAttention.provides}
    sizes = torch.tensor([part.tokens["location"].shape[1] for part in parts])
    raised = torch.tensor(offsets).repeat_interleave(sizes).to(joined["location"].device)
    has_media = joined["last"] >= joined["first"]
    joined["first"] = torch.where(has_media, joined["first"] + raised, 0)
    for name in ("location", "last"):
        joined[name] = torch.where(joined[name] >= 0, joined[name] + raised, joined[name])
    return joined


def _joined_media(shared: Sequence[dict[str, Any]]) -> dict[str, Tensor | None]:
    """``media [sum n_i, max k_i, d]`` and ``real [sum n_i, max k_i]`` (None: all are) of parts with media."""
    if not shared:
        return {"media": None, "real": None}
    media = [each["media"] for each in shared]
    equal = len({value.shape[1] for value in media}) == 1
    if equal and all(each["real"] is None for each in shared):
        return {"media": stacked(media), "real": None}
    real = [each["real"] for each in shared]
    real = [media[i].new_ones(media[i].shape[:2], dtype=torch.bool) if r is None else r for i, r in enumerate(real)]
    return {"media": stacked(media), "real": stacked(real)}


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
