"""Splice: each media placeholder of the text is replaced by the medium's visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlm.common.errors import ConfigError, PromptError
from vlm.common.registry import register_fusion
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Features
from vlm.models.fusion.base import LLMInputs
from vlm.models.fusion.locations import borders
from vlm.models.fusion.positions import GRID_AXES, grid_positions, grids_of, restart_positions
from vlm.models.llm.attention import only_causal
from vlm.models.protocols import OpensBlocks, RotatesAxes


@register_fusion("splice")
class Splice:
    """Puts the visual tokens of each medium in place of its placeholder; any number of media in a row, or none."""

    @dataclass
    class Config:
        """Options of ``fusion: splice``.

        ``attention`` is what a token sees besides the text and media before it: with ``causal`` nothing, with ``image``
        all visual tokens of its own image or video, with ``prefix`` everything before the first supervised token of
        the sample (the whole prompt, when an answer is written). With ``positions: grid`` a visual token has three
        positions, its frame, row and column from where the medium begins, and the text goes on after the largest; the
        LLM must have rotary positions of three axes.

        Example: ``fusion: {name: splice, attention: image}``
        """

        attention: Literal["causal", "image", "prefix"] = "causal"
        positions: Literal["text", "grid"] = "text"

    def __init__(self, config: Config, llm: Any) -> None:
        self.config = config
        self.options = config if isinstance(config, Splice.Config) else Splice.Config()  # a subclass may have its own
        self.llm = llm
        if self.options.attention != "causal" and isinstance(llm, OpensBlocks) and not llm.opens_blocks:
            raise only_causal(type(llm.model).__name__)
        axes = llm.position_axes if isinstance(llm, RotatesAxes) else 1
        if self.options.positions == "grid" and axes != GRID_AXES:
            raise ConfigError(
                f"model.fusion.positions is grid, but the LLM has rotary positions of {axes} axis, not {GRID_AXES}",
                fix="set it to text, or use an LLM with positions for time, row and column (Qwen2-VL, Qwen2.5-VL, ...)",
            )

    def __call__(self, batch: Batch, visual: Features | None) -> LLMInputs:
        """Ids ``[b, s]`` with ``MEDIA_TOKEN`` at each medium and tokens ``[n, f, v, d]`` -> ``[b, L]`` fused.

        Raises:
            PromptError: the number of placeholders and of media differ; it names the sample and both counts.
        """
        check_placeholders(batch, visual)
        real = batch.segments > 0
        width = real.long()
        flat = None if visual is None else _flatten(visual)
        if flat is not None:
            width[batch.media_row, batch.media_pos] = flat[0]
        end = width.cumsum(1)
        start = end - width
        length, most_segments = torch.stack([end[:, -1].max(), batch.segments.max()]).tolist()
        rows = torch.arange(len(real), device=real.device)[:, None].expand_as(real)
        text = real & (batch.ids != MEDIA_TOKEN)
        at = (rows[text], start[text])

        embedded = self.llm.embed(batch.ids[text])
        shape = (len(real), length)
        embeds = embedded.new_zeros(*shape, embedded.shape[-1]).index_put(at, embedded)
        labels = torch.full(shape, IGNORE_INDEX, dtype=batch.labels.dtype, device=real.device)
        labels[at] = batch.labels[text]
        segments = torch.zeros(shape, dtype=batch.segments.dtype, device=real.device)
        segments[at] = batch.segments[text]
        media = torch.zeros_like(segments)  # number of the medium, from 1
        if flat is not None:
            _, tokens, medium, inside = flat
            row, pos = batch.media_row[medium], batch.media_pos[medium]
            there = (row, start[row, pos] + inside)
            embeds = embeds.index_put(there, tokens.to(embeds.dtype))
            segments[there] = batch.segments[row, pos]
            media[there] = medium + 1
        if self.options.positions == "grid":
            grids = segments.new_zeros(0, GRID_AXES) if visual is None or flat is None else grids_of(visual, flat[0])
            positions = grid_positions(segments, media, grids)
        else:
            positions = restart_positions(segments)
        blocks = self._blocks(segments, labels, media)
        return LLMInputs(embeds, segments, positions, labels, most_segments > 1, blocks=blocks, media=media)

    def _blocks(self, segments: Tensor, labels: Tensor, media: Tensor) -> Tensor | None:
        """``[b, L]``, see :class:`LLMInputs`, by the option ``attention``."""
        if self.options.attention == "causal":
            return None
        if self.options.attention == "image":
            return media
        supervised = (labels != IGNORE_INDEX).long()
        count = supervised.cumsum(1)
        before = (count - supervised).gather(1, borders(segments)[0])
        return torch.where((segments > 0) & (count == before), segments, 0)


def _flatten(visual: Features) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens per medium ``[n]``, real tokens ``[t, d]``, and of each its medium and rank within it ``[t]``."""
    n, f, v, d = visual.tokens.shape
    tokens = visual.tokens.reshape(n * f * v, d)
    device = tokens.device
    if visual.mask is None:
        medium = torch.arange(n, device=device).repeat_interleave(f * v)
        inside = torch.arange(f * v, device=device).repeat(n)
        return torch.full((n,), f * v, device=device), tokens, medium, inside
    mask = visual.mask.reshape(n, f * v)
    medium, _ = mask.nonzero(as_tuple=True)
    rank = mask.long().cumsum(1) - 1
    return mask.sum(1), tokens[mask.flatten()], medium, rank[mask]


def check_placeholders(batch: Batch, visual: Features | None) -> None:
    """Check that every placeholder of the text has its medium.

    Raises PromptError: more placeholders than media or more media than placeholders; lists the samples.
    """
    placeholders = (batch.ids == MEDIA_TOKEN) & (batch.segments > 0)
    media = 0 if visual is None else len(visual.tokens)
    placed = torch.zeros_like(placeholders)
    placed[batch.media_row, batch.media_pos] = True
    if media == len(batch.media_row) and bool((placed == placeholders).all()):
        return
    want, have = placeholders.sum(1), torch.bincount(batch.media_row, minlength=len(placeholders))
    have = have * (visual is not None)
    bad = [
        f"{_name(batch, row)}: {w} image placeholder(s) in the prompt, {h} image(s)"
        for row, (w, h) in enumerate(zip(want.tolist(), have.tolist(), strict=True))
        if w != h
    ]
    counts = "; ".join(bad) or f"{int(want.sum())} placeholder(s), {media} image(s)"
    fix = "write one image placeholder (<ImageHere>) for each image, in the order of the images"
    raise PromptError(f"placeholders and images do not agree: {counts}", fix=fix)


def _name(batch: Batch, row: int) -> str:
    packed = int(batch.segments.max()) > 1
    known = not packed and row < len(batch.sample_ids) and batch.sample_ids[row]
    return f"sample {batch.sample_ids[row]!r}" if known else f"row {row}"
