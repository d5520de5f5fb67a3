"""Media of different shapes: which can be encoded together, and one padded tensor of the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlm.common.types import Features, MediaFacts


def same_shapes(
    pixels: Tensor, frames: Tensor | None, about: MediaFacts | None
) -> Iterator[tuple[Tensor, tuple[int, int, int]]]:
    """Places ``[k]`` of the media that share a shape, and that shape: frames, height and width.

    ``pixels [n, f, 3, h, w]`` are padded to the largest; ``frames [n]`` and ``about.shapes`` say what is real.
    """
    n, f, _, h, w = pixels.shape
    shapes = None if about is None else about.shapes
    counts = [f] * n if frames is None else frames.tolist()
    sides = [[h, w]] * n if shapes is None else shapes.tolist()
    found: dict[tuple[int, int, int], list[int]] = {}
    for place, (count, (height, width)) in enumerate(zip(counts, sides, strict=True)):
        found.setdefault((count, height, width), []).append(place)
    for shape in sorted(found):
        yield torch.tensor(found[shape], device=pixels.device), shape


def join(parts: Sequence[tuple[Tensor, Features]]) -> Features:
    """Groups of media in one order: ``[n, f, v, d]`` with the largest f and v, and a mask that is False at padding.

    ``parts`` are, per group, the places ``[k]`` of its media (together 0..n-1) and their features ``[k, f, v, d]``.
    """
    if len(parts) == 1 and torch.equal(parts[0][0].cpu(), torch.arange(len(parts[0][0]))):
        return parts[0][1]
    order = torch.cat([places for places, _ in parts]).argsort()
    most = [max(value.tokens.shape[k] for _, value in parts) for k in (1, 2)]
    tokens, masks = [], []
    for _, value in parts:
        f, v = (expected - have for expected, have in zip(most, value.tokens.shape[1:3]))
        real = torch.ones_like(value.tokens[..., 0], dtype=torch.bool) if value.mask is None else value.mask
        tokens.append(pad(value.tokens, (0, 0, 0, v, 0, f)))
        masks.append(pad(real, (0, v, 0, f)))
    grids = [value.grid for _, value in parts if value.grid is not None]
    grid = torch.cat(grids)[order.cpu()] if len(grids) == len(parts) else None
    return Features(torch.cat(tokens)[order], torch.cat(masks)[order], grid)
