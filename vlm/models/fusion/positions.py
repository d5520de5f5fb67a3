"""Positions of three axes: where a visual token is in its medium, and text after it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm.common.errors import ConfigError
from vlm.common.types import Features
from vlm.models.fusion.locations import borders

GRID_AXES = 3
"""Axes of a position: time, row and column."""


def restart_positions(segments: Tensor) -> Tensor:
    """``[b, L]`` position of each token within its segment; 0 at padding."""
    index = torch.arange(segments.shape[1], device=segments.device)
    return torch.where(segments > 0, index - borders(segments)[0], 0)


def grids_of(visual: Features, counts: Tensor) -> Tensor:
    """``[n, 3]`` frames, rows and columns of each medium, on the device of ``counts [n]``, its numbers of tokens.

    Raises ConfigError: the tokens of a medium lie in no grid.
    """
    tokens = visual.tokens.shape[2]
    side = math.isqrt(tokens)
    square = torch.full((len(counts), 2), side if side * side == tokens else 0)
    grid = (square if visual.grid is None else visual.grid).to(counts.device)
    area = grid.prod(1)
    odd = (area == 0) | (counts % area.clamp(min=1) != 0)
    if bool(odd.any()):
        raise ConfigError(
            f"model.fusion.positions is grid, but the {int(counts[odd][0])} visual tokens of an image lie in no grid",
            fix="set it to text, or use bridges that keep rows and columns (linear, mlp, ...)",
        )
    return torch.cat([(counts // area)[:, None], grid], 1)


def grid_positions(segments: Tensor, media: Tensor, grids: Tensor) -> Tensor:
    """``[b, L, 3]`` positions of three axes, restarting at every segment; 0 at padding.

    Within a medium the axes count its frames, rows and columns from where it begins; what follows goes on after the
    largest. Source: arXiv:2409.12191, section 2.1.

    Args:
        segments: ``[b, L]``, 0 at padding.
        media: ``[b, L]`` number of the medium, from 1, at its tokens (frame by frame, row by row); 0 at text.
        grids: ``[n, 3]`` of :func:`grids_of`.
    """
    visual = media > 0
    sizes = torch.cat([grids.new_ones(1, GRID_AXES), grids])[media]
    rank = torch.arange(media.shape[1], device=media.device) - borders(media)[0]
    span = torch.where(segments > 0, sizes.amax(-1), 0)
    start = torch.where(visual & (rank > 0), 0, span).cumsum(1) - span
    start = start - start.gather(1, borders(segments)[0])
    _, rows, columns = sizes.unbind(-1)
    place = torch.stack([rank // (rows * columns), rank // columns % rows, rank % columns], -1)
    position = start[..., None] + torch.where(visual[..., None], place, 0)
    return torch.where(segments[..., None] > 0, position, 0)
