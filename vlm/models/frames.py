"""Padding for media with different numbers of frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlm.common.types import Features


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
    return Features(torch.cat(tokens)[order], torch.cat(masks)[order])
