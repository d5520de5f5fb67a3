"""Which medium each position of a text attends to."""

from __future__ import annotations

import torch
from torch import Tensor


def locate(placeholders: Tensor, segments: Tensor, attend_previous: bool) -> Tensor:
    """The medium that each position attends to.

    Args:
        placeholders: ``[b, s]`` bool, True at the placeholder of a medium.
        segments: ``[b, s]``, 0 at padding, else the number of the sample within the row.
        attend_previous: text attends to the last medium before it; else to the next one after it. A placeholder always
            attends to its own medium.

    Returns:
        ``[b, s]`` number of the medium (1..) within the row, of the position's own sample; 0 where there is none.
        Source: arXiv:2204.14198, section 2.3, with the two directions of the first open reproduction.
    """
    count = placeholders.long().cumsum(1)
    begin, end = borders(segments)
    if attend_previous:
        location = torch.where(count > earlier(placeholders, segments), count, 0)
    else:
        location = count + (~placeholders).long()
        location = torch.where(location > count.gather(1, end), 0, location)
    return torch.where(segments > 0, location, 0)


def earlier(placeholders: Tensor, segments: Tensor) -> Tensor:
    """``[b, s]`` how many placeholders precede, in the row, the position's own sample."""
    count = placeholders.long().cumsum(1) - placeholders.long()
    return count.gather(1, borders(segments)[0])


def borders(segments: Tensor) -> tuple[Tensor, Tensor]:
    """First and last position ``[b, s]`` of the run of equal segment numbers around each position."""
    size = segments.shape[1]
    index = torch.arange(size, device=segments.device).expand_as(segments)
    change = segments[:, 1:] != segments[:, :-1]
    edge = torch.ones_like(segments[:, :1], dtype=torch.bool)
    begin = torch.where(torch.cat([edge, change], 1), index, 0).cummax(1).values
    end = torch.where(torch.cat([change, edge], 1), index, size).flip(1).cummin(1).values.flip(1)
    return begin, end
